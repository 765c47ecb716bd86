"""States saved and loaded in the middle of training, copies and pickles of compiled models."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from tests.training_loops.beside import Compile, Seen, assert_same, check, gradients, mlp, step

BATCH = 64


def train(model: nn.Module, run: Compile, optimizer: torch.optim.Optimizer, x: Tensor) -> Seen:
    optimizer.zero_grad()
    seen = step(model, run, x)
    optimizer.step()
    return seen


@pytest.mark.parametrize("load", ["plain", "compiled"])
def test_training_goes_on_from_a_saved_state(load: str) -> None:
    def loop(compile: Compile) -> Seen:
        model, x = mlp(), torch.randn(BATCH, 32)
        compiled = compile(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        first = train(model, compiled, optimizer, x)
        file = io.BytesIO()
        torch.save({"model": compiled.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file)

        other = mlp()
        again = compile(other)
        names = {name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()}
        again.load_state_dict(saved["model"]) if load == "compiled" else other.load_state_dict(names)
        fresh = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
        fresh.load_state_dict(saved["optimizer"])
        here, there = train(model, compiled, optimizer, x), train(other, again, fresh, x)
        assert_same([*here.exact, *here.close], [*there.exact, *there.close])
        return Seen(first.exact, [*first.close, *here.exact, *gradients(model)])

    check(loop)


@pytest.mark.parametrize("ran", [False, True])
def test_a_copy_trains_by_itself(ran: bool) -> None:
    def loop(compile: Compile) -> Seen:
        compiled, x = compile(mlp()), torch.randn(BATCH, 32)
        if ran:
            step(compiled, compiled, x)
            compiled.zero_grad()
        twin = copy.deepcopy(compiled)
        with torch.no_grad():
            for p in twin.parameters():
                p.mul_(0.9)
        seen = step(twin, twin, x)
        assert all(p.grad is None for p in compiled.parameters())
        return seen

    check(loop)


@pytest.mark.parametrize("backend", [None, "fxapprox"])
@pytest.mark.parametrize("ran", [False, True])
def test_pickles(ran: bool, backend: str | None) -> None:
    """As under plain torch.compile, a model can be pickled, before its first step and after it."""
    model, x = mlp(), torch.randn(BATCH, 32)
    options = {"bits": 4, "lowering": "eager", "min_bytes": 0}
    compiled: Any = (
        fxapprox.compile(model, **options)  # type: ignore[arg-type]
        if backend is None
        else torch.compile(model, backend=backend, options=options)
    )
    if ran:
        step(compiled, compiled, x)
        compiled.zero_grad()
    twin = pickle.loads(pickle.dumps(compiled))
    assert fxapprox.reports(twin) == ()
    here, there = (step(each, each, x) for each in (compiled, twin))
    assert_same([*here.exact, *here.close], [*there.exact, *there.close])
    assert len(fxapprox.reports(compiled)) == 1
