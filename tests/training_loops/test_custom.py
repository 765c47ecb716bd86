"""Derivatives that the user has written: autograd.Function, and custom operators with a registered backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training_loops.beside import Between, Compile, Seen, check, slow, step

BATCH = 64


class SavesInput(torch.autograd.Function):
    """x * sigmoid(x), its derivative by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s + x * s * (1 - s))


class SavesOutput(torch.autograd.Function):
    """exp(x), which is its own derivative: no approximation of it is safe."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.exp()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


class StraightThrough(torch.autograd.Function):
    """Rounds; the gradient passes where |x| < 1, a decision that backward takes anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return (x * scale).round() / scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() < 1, grad, torch.zeros_like(grad)), None


class NotTheDerivative(torch.autograd.Function):
    """A gradient reversal: backward is not forward's derivative, and must not be replaced by it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * -0.5


FUNCTIONS = {
    "saves its input": SavesInput.apply,
    "saves its output": SavesOutput.apply,
    "straight through": lambda h: StraightThrough.apply(h, 8.0),
    "not the derivative": NotTheDerivative.apply,
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # Dynamo instantiates it
@pytest.mark.parametrize(
    "name", ["saves its output", "straight through", *slow("saves its input", "not the derivative")]
)
def test_autograd_functions(name: str) -> None:
    function: Any = FUNCTIONS[name]

    def loop(compile: Compile) -> Seen:
        model = Between(lambda h: function(h * 2))
        return step(model, compile(model), torch.randn(BATCH, 32))

    check(loop)


@torch.library.custom_op("fxapprox_tests::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@torch.library.custom_op("fxapprox_tests::cube_backward", mutates_args=())
def cube_backward(grad: Tensor, x: Tensor) -> Tensor:
    return grad * 3 * x**2


@torch.library.custom_op("fxapprox_tests::accumulate", mutates_args=("total",))
def accumulate(x: Tensor, total: Tensor) -> None:
    total += x.sum(0)


cube.register_fake(torch.empty_like)
cube_backward.register_fake(lambda grad, x: torch.empty_like(x))
accumulate.register_fake(lambda x, total: None)
cube.register_autograd(
    lambda ctx, grad: cube_backward(grad, ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def test_a_custom_operator_reads_exact_values() -> None:
    def loop(compile: Compile) -> Seen:
        model = Between(lambda h: cube(h * 2) + h.sin())
        return step(model, compile(model), torch.randn(BATCH, 32))

    reports = check(loop)
    exact = {d.reason.split(" (")[0] for d in reports[0].decisions if d.storage == "exact" or d.storage == "recomputed"}
    assert "unknown operator fxapprox_tests.cube_backward" in exact


def test_a_custom_operator_that_writes_to_an_input() -> None:
    def loop(compile: Compile) -> Seen:
        total = torch.zeros(64)

        def middle(h: Tensor) -> Tensor:
            accumulate(h.detach(), total)
            return (h * 2).tanh() - total

        model = Between(middle)
        run, x = compile(model), torch.randn(BATCH, 32)
        seen = [step(model, run, x) for _ in range(2)]
        return Seen([*seen[0].exact, *seen[1].exact, total], seen[1].close)

    check(loop)
