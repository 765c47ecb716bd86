"""Exponentials in a branch of where: bounded where they are read, whatever stands in the other branch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxapprox.analysis.selected import ceilings
from fxapprox.codecs import Identity
from fxapprox.ir.operators import op_name
from tests.passes.graphs import joint_of, training

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "elu of a shifted value": lambda h: F.elu(h - 1, 0.5),
    "selu": F.selu,
    "celu": lambda h: F.celu(h, 2.0),
    "softplus": F.softplus,
    "steep softplus": lambda h: F.softplus(h, 5, 10),
    "mish": F.mish,
    "log sigmoid": F.logsigmoid,
    "written out": lambda h: torch.where(h < 0.5, h.exp(), 1.6 + h),
    "the other way round": lambda h: torch.where(~(h > 0), 2 * torch.expm1(h / 2), h),
    "negated": lambda h: torch.where(h >= -1, torch.exp(-h), 2.7 - h),
}
# plain autograd multiplies the exponential of the other branch by 0, and has NaN where it overflows
WRITTEN = ("written out", "the other way round", "negated")
SCALES = {"usual": 1.0, "large": 20.0, "huge": 1e4}


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x))).square().mean()


@pytest.mark.parametrize(
    ("name", "scale"), [(n, s) for n in FUNCTIONS for s in SCALES if not (n in WRITTEN and s == "huge")]
)
def test_gradients_of_exponentials_hold(name: str, scale: str) -> None:
    torch.manual_seed(0)
    train = training(Net(FUNCTIONS[name]), SCALES[scale] * torch.randn(96, 32))
    exact, same, coded = train(bits=None), train(policy=lambda _: Identity()), train(bits=8)
    assert torch.equal(exact.gradient, same.gradient)
    assert coded.gradient.isfinite().all()
    assert coded.error(exact) < 0.02
    assert coded.report.saved_bytes <= coded.report.baseline_bytes / 1.9


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in WRITTEN])
def test_one_huge_element_makes_nothing_overflow(name: str) -> None:
    """It widens its group's grid so much that a neighbour decodes to what would be infinity or not a number."""
    torch.manual_seed(0)
    model, x = Net(FUNCTIONS[name]), torch.randn(96, 32)
    x[::5] *= 1e6
    train = training(model, x)
    assert all(train(bits=bits).gradient.isfinite().all() for bits in (8, 2))


def ceilings_of(function: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    w = torch.randn(8, 8, requires_grad=True)
    joint = joint_of(lambda x: function(x @ w, x @ w.T).sum(), torch.randn(16, 8))
    return [round(high, 3) for node, high in ceilings(joint).items() if op_name(node) == "aten.exp"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: torch.where(x > 0, y, x.detach().exp()), {0.01}),
        (lambda x, y: torch.where(x > 0, y, (2 * x.detach() + 1).exp()), {1.02}),
        (lambda x, y: torch.where(x > 0, y, y.exp()), set()),
        (lambda x, y: torch.where(x > 0, x.exp(), y), set()),
        (lambda x, y: torch.where(x > 0, y, x.exp()) + x.exp(), set()),
        (lambda x, y: torch.where(x > 0, y, x.exp().mean(1, keepdim=True)), set()),
        (lambda x, y: torch.where(x > y, y, x.exp()), set()),
        (lambda x, y: torch.where(x > 0, x.exp(), x.exp()), set()),
        (lambda x, y: torch.where(x > 0, y, x.exp().flip(0)), set()),
    ],
)
def test_where_an_exponential_is_read(function: Callable[[Tensor, Tensor], Tensor], expected: set[float]) -> None:
    assert set(ceilings_of(function)) == expected
