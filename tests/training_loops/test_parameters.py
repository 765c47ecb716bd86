"""Parameters that are frozen, adapted, tied, used twice, not used, or have sparse gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training_loops.beside import Compile, Seen, check, gradients, mlp, step

BATCH = 64


def test_nothing_is_stored_for_frozen_layers() -> None:
    def loop(compile: Compile) -> Seen:
        model = nn.Sequential(mlp().requires_grad_(False), nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
        return step(model, compile(model), torch.randn(BATCH, 32))

    (report,) = check(loop)
    stored = {d.module for d in report.decisions if d.bytes_after}
    assert stored
    assert stored.isdisjoint({"0.0", "0.1", "0.2", "0.3"})  # what the frozen part makes is an input of the rest


class Adapted(nn.Module):
    """A frozen layer and a low-rank correction (LoRA)."""

    def __init__(self, inputs: int, outputs: int, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_adapters_on_frozen_layers() -> None:
    def loop(compile: Compile) -> Seen:
        model = nn.Sequential(Adapted(32, 64), nn.GELU(), Adapted(64, 64), nn.ReLU(), Adapted(64, 8))
        seen = step(model, compile(model), torch.randn(BATCH, 32))
        assert [g is None for g in seen.close] == [not p.requires_grad for p in model.parameters()]
        return seen

    check(loop)


def test_layers_are_frozen_and_unfrozen_between_steps() -> None:
    def loop(compile: Compile) -> Seen:
        model, x = mlp(), torch.randn(BATCH, 32)
        run, seen = compile(model), Seen([], [])
        for trained in (True, False, True):
            model.zero_grad()
            model[2].requires_grad_(trained)
            each = step(model, run, x)
            assert (model[2].weight.grad is None) is not trained
            seen = Seen([*seen.exact, *each.exact], [*seen.close, *each.close])
        return seen

    assert len(check(loop)) == 2


class Language(nn.Module):
    """Embedding and output layer share a weight; a block is applied twice; one layer is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.block = nn.Embedding(50, 64), nn.Linear(64, 64)
        self.head, self.unused = nn.Linear(64, 50, bias=False), nn.Linear(3, 3)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        h = h + F.gelu(self.block(h))
        return self.head(h + F.gelu(self.block(h)))


def test_tied_twice_used_and_unused_parameters(one_thread: None) -> None:
    def loop(compile: Compile) -> Seen:
        model = Language()
        seen = step(model, compile(model), torch.randint(50, (4, 16)))
        assert model.unused.weight.grad is None
        return seen

    check(loop)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_sparse_gradients_of_an_embedding(mode: str, one_thread: None) -> None:
    def loop(compile: Compile) -> Seen:
        bag = nn.EmbeddingBag(50, 64, mode=mode, sparse=True)
        model = nn.Sequential(bag, nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
        seen = step(model, compile(model), torch.randint(50, (16, 4)))
        return Seen(seen.exact, [g.to_dense() for g in seen.close if g is not None])

    check(loop)


def test_a_parameter_without_dimensions() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(32, 64), nn.Parameter(torch.tensor(0.7))

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return torch.tanh(self.layer(x) * self.scale + shift)

    def loop(compile: Compile) -> Seen:
        model = Scaled()
        return step(model, compile(model), torch.randn(BATCH, 32), torch.tensor(0.3, requires_grad=True))

    check(loop)


def test_parameters_given_anew() -> None:
    """gradients(model) are those of what the step ran with."""

    def loop(compile: Compile) -> Seen:
        model, x = mlp(), torch.randn(BATCH, 32)
        run = compile(model)
        first = step(model, run, x)
        model[0].weight = nn.Parameter(torch.randn(64, 32) / 6)
        second = step(model, run, x)
        return Seen([*first.exact, *second.exact], [*first.close, *gradients(model)])

    check(loop)
