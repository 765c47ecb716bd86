"""Operations in place, views, and inputs and outputs that share memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training_loops.beside import Between, Compile, Seen, check, gradients, mlp, slow, step

BATCH = 64


def add(h: Tensor) -> Tensor:
    return h.add_(1.0).mul_(torch.sigmoid(h))


def masked_fill(h: Tensor) -> Tensor:
    h = h.clone()
    return h.masked_fill_(h < -0.1, 0.5)


def index_put(h: Tensor) -> Tensor:
    rows = torch.arange(0, BATCH, 3)
    return torch.tanh(h.clone().index_put_((rows,), torch.ones(64)))


def index_add(h: Tensor) -> Tensor:
    rows = torch.arange(BATCH) % 5
    return torch.zeros(BATCH, 64).index_add_(0, rows, h).sin()


def through_a_view(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, :16].mul_(2.0)
    h.view(-1)[5] = 0.25
    return h * h.sigmoid()


def copied(h: Tensor) -> Tensor:
    buffer = torch.empty(BATCH, 128)
    buffer[:, :64].copy_(h)
    buffer[:, 64:] = h.relu()
    return buffer[:, ::2].tanh()


def after_it_was_saved(h: Tensor) -> Tensor:
    kept = h.exp()
    return kept * (h.add_(kept)).cos()


def split(h: Tensor) -> Tensor:
    gate, value = h.chunk(2, -1)
    return torch.cat([torch.sigmoid(gate) * value, value.clone().relu_()], -1)


IN_PLACE: list[Any] = [
    nn.ReLU(inplace=True), index_put, through_a_view, after_it_was_saved,
    *slow(nn.Hardswish(inplace=True), add, masked_fill, index_add, copied, split),
]  # fmt: skip


@pytest.mark.parametrize("middle", IN_PLACE, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_operations_in_place(middle: Callable[[Tensor], Tensor]) -> None:
    def loop(compile: Compile) -> Seen:
        model = Between(middle)
        return step(model, compile(model), torch.randn(BATCH, 32, requires_grad=True))

    check(loop)


class Returns(nn.Module):
    """Returns what a function makes of the input and of a hidden value."""

    def __init__(self, made: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.first, self.second, self.made = nn.Linear(32, 64), nn.Linear(64, 64), made

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.second(F.gelu(self.first(x)))
        return self.made(x, torch.tanh(h))


SHARED: dict[str, Callable[[Tensor, Tensor], tuple[Any, ...]]] = {
    "a view of the input": lambda x, h: (x.t(), h),
    "a part of another": lambda _, h: (h, h[:, :16]),
    "two views of one value": lambda _, h: (h.view(-1), h.t()),
    "the same twice": lambda _, h: (h, h),
    "a detached part of what is saved": lambda _, h: (h.detach()[::2], h.sin()),
}


@pytest.mark.parametrize(
    "name",
    [
        "a view of the input",
        "two views of one value",
        *slow("a part of another", "the same twice", "a detached part of what is saved"),
    ],
)
def test_outputs_that_share_memory(name: str) -> None:
    def loop(compile: Compile) -> Seen:
        model, x = Returns(SHARED[name]), torch.randn(BATCH, 32, requires_grad=True)
        out = compile(model)(x)
        sum(o.square().mean() for o in out).backward()
        storages = {o.untyped_storage().data_ptr() for o in out}
        shared = torch.tensor([len(storages), *(o._is_view() for o in out)])
        return Seen([*(o.detach() for o in out), shared], gradients(model, x))

    check(loop)


def test_an_output_changed_before_backward() -> None:
    """Stored exactly it is the output that backward reads: autograd refuses. Of a code the gradients are right."""
    model, x = Returns(lambda _, h: (h, h.square())), torch.randn(BATCH, 32)
    right = torch.autograd.grad(model(x)[1].mean(), list(model.parameters()), allow_unused=True)

    def loop(compile: Compile) -> Seen:
        out, squares = compile(model)(x)
        loss = squares.mean()
        with torch.no_grad():
            out.zero_()
        try:
            found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        except RuntimeError:
            refused.append(compile)
            found = right
        return Seen([loss.detach()], found)

    refused: list[Compile] = []
    check(loop)
    assert len(refused) == 2  # plain torch.compile and exact mode


def test_inputs_changed_in_place() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("average", torch.zeros(64))

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            self.seen += 1
            h = F.gelu(self.first(x.mul_(0.5)))
            self.average.lerp_(h.detach().mean(0), 0.1)
            out = self.second(torch.tanh(h) - self.average)
            memory.add_(h.detach())
            return out

    def loop(compile: Compile) -> Seen:
        model, x, memory = Counts(), torch.randn(BATCH, 32), torch.randn(BATCH, 64)
        run = compile(model)
        seen = [step(model, run, x, memory) for _ in range(2)]
        states = [x, memory, *model.buffers()]
        return Seen([*seen[0].exact, *seen[1].exact, *(s.clone() for s in states)], seen[1].close)

    check(loop)


def test_an_input_with_a_gradient_is_changed_in_place() -> None:
    def loop(compile: Compile) -> Seen:
        model, leaf = mlp(), torch.randn(BATCH, 32, requires_grad=True)

        def forward(x: Tensor) -> Tensor:
            x.mul_(2.0)
            return model(x.sin())

        x = leaf * 1.0
        out = compile(forward)(x)
        (out.square().mean() + x.square().mean()).backward()
        return Seen([out.detach(), x.detach()], gradients(model, leaf))

    check(loop)


def test_views_as_inputs() -> None:
    """Two parts of one tensor, of which one is changed."""

    def loop(compile: Compile) -> Seen:
        model, base = mlp(), torch.randn(2 * BATCH, 32)

        def forward(x: Tensor, y: Tensor) -> Tensor:
            x.add_(1.0)
            return model(x * y.sigmoid())

        out = compile(forward)(base[:BATCH], base[BATCH:])
        out.square().mean().backward()
        return Seen([out.detach(), base], gradients(model))

    check(loop)
