"""Recipe and record of a training run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tools.train import runs


def test_numbers_that_are_not_finite_survive_json() -> None:
    recipe = runs.Recipe(8, "basic", 1, 8, None, 0.1, 0.9, 2e-4, "eager")
    diverged = runs.Epoch(1, float("nan"), 0.1, float("inf"), 0.1, 0.1, 1.0)
    run = runs.Run("plain", 0, recipe, stored_bytes=1, epochs=[diverged])
    record = json.loads(runs.as_json(run))
    assert record["epochs"][0]["train_loss"] is None
    runs.adopt(run, record)
    assert np.isnan(run.epochs[0].test_loss)


def test_learning_rate_follows_the_paper() -> None:
    recipe = runs.Recipe(8, "basic", 1, 8, None, 0.1, 0.9, 2e-4, "eager")
    iterations = [0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999]
    rates = [recipe.rate(iteration / 64_000) for iteration in iterations]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
