"""The demonstration at a tiny size: every number of its table is there and means what its heading says."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch
from rich.console import Console

import fxapprox
from fxapprox.demo.data import generate
from fxapprox.demo.model import preact_resnet
from fxapprox.demo.run import FULL, MODES, QUICK, Mode, Scale, run_demo

TINY = Scale(stages=2, depth=6, width=8, batch=16, steps=3, train_images=32, test_images=20, rounds=2)
EAGER = (
    Mode("torch.compile", partial(torch.compile, backend="aot_eager", dynamic=False)),
    Mode("fxapprox exact", partial(fxapprox.compile, bits=None, lowering="eager", dynamic=False)),
    Mode("fxapprox 4 bits", partial(fxapprox.compile, bits=4, lowering="eager", dynamic=False)),
)


def test_a_row_for_each_mode_and_one_table() -> None:
    out = io.StringIO()
    plain, exact, four = run_demo(modes=EAGER, scale=TINY, console=Console(file=out, width=80))
    assert plain.stored_bytes > exact.stored_bytes > four.stored_bytes > 0
    assert min(row.peak_bytes for row in (plain, exact, four)) > four.stored_bytes
    assert plain.gradient_error == 0
    assert exact.gradient_error < 1e-5
    assert 0 < four.gradient_error < 0.5
    assert plain.step_time == 1
    assert all(row.same_first_loss for row in (plain, exact, four))
    assert all(0 <= row.accuracy <= 1 for row in (plain, exact, four))
    text = out.getvalue()
    assert all(f"{mode.name}: 3 steps done" in text for mode in EAGER)  # a file shows no bar
    assert all(text.count(mode.name) == 2 for mode in EAGER)
    assert "gradient" in text
    assert "…" not in text


def test_the_four_modes_that_users_see() -> None:
    assert [mode.name for mode in MODES] == ["torch.compile", "fxapprox exact", "fxapprox 8 bits", "fxapprox 4 bits"]
    for scale in (FULL, QUICK):
        preact_resnet(scale.depth, width=scale.width, stages=scale.stages)
        assert scale.train_images >= scale.batch


def test_too_few_images_are_refused() -> None:
    scale = Scale(stages=2, depth=6, width=8, batch=64, steps=1, train_images=8, test_images=8, rounds=1)
    with pytest.raises(ValueError, match="8 training images do not fill one batch of 64"):
        run_demo(modes=EAGER, scale=scale, console=Console(file=io.StringIO()))


def test_the_images_depend_on_the_seed_alone() -> None:
    first, same, other = generate(12, seed=3), generate(12, seed=3), generate(12, seed=4)
    assert torch.equal(first.images, same.images)
    assert torch.equal(first.labels, same.labels)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (12, 3, 32, 32)
    assert int(first.labels.max()) < 10
