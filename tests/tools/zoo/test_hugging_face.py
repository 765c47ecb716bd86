"""The table of the transformers package's architectures: each row builds, and gives the loss that it claims."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tools.zoo.models.hugging_face import ARCHITECTURES, MODELS

SMALL = 500_000  # parameters, at most


@pytest.fixture(autouse=True)
def _default_warnings() -> Iterator[None]:
    """What the package warns of is not ours to mend."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", MODELS)
def test_a_row_builds_and_has_a_loss(name: str) -> None:
    case = MODELS[name](batch=3)
    assert case.name == name
    assert case.model.training
    assert sum(p.numel() for p in case.model.parameters()) <= SMALL
    assert [len(tensor) for tensor in case.args] == [3] * len(case.args)
    with torch.no_grad():
        loss = case.loss(case.model(*case.args))
    assert loss.shape == ()
    assert loss.isfinite()


def test_weights_depend_on_the_seed_alone() -> None:
    first, second, other = (MODELS["bert"](seed=s, batch=b).model.state_dict() for s, b in ((0, 2), (0, 4), (1, 2)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_table_has_what_the_zoo_promises_and_imports_nothing() -> None:
    assert len(ARCHITECTURES) >= 42
    code = "import sys, tools.zoo.models.hugging_face; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
