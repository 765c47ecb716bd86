"""States saved and loaded in the middle of training, copies and pickles of compiled models."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from tests.training_loops.beside import Compile, Seen, check, gradients, mlp, step

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
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        first = train(model, compiled, optimizer, x)
        file = io.BytesIO()
        torch.save({"model": compiled.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file)

        other = mlp()
        again = compile(other)
        names = {name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()}
        again.load_state_dict(saved["model"]) if load == "compiled" else other.load_state_dict(names)
        fresh = torch.optim.Adam(other.parameters(), lr=0.01)
        fresh.load_state_dict(saved["optimizer"])
        here, there = train(model, compiled, optimizer, x), train(other, again, fresh, x)
        for mine, theirs in zip([*here.exact, *here.close], [*there.exact, *there.close], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
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


@pytest.mark.parametrize("ran", [False, True])
def test_pickles_as_torchs(ran: bool) -> None:
    """torch.compile's own models pickle before their first step; ours do whenever torch's do."""

    def pickled(compiled: nn.Module) -> nn.Module | None:
        if ran:
            step(compiled, compiled, torch.randn(BATCH, 32))
        try:
            return pickle.loads(pickle.dumps(compiled))
        except Exception:
            return None

    torch.manual_seed(0)
    model = mlp()
    plain = pickled(torch.compile(copy.deepcopy(model), backend="inductor" if not ran else "aot_eager"))
    twin = pickled(fxapprox.compile(model, lowering="eager"))
    assert (twin is None) == (plain is None)
    if twin is not None:
        step(twin, twin, torch.randn(BATCH, 32))
