"""Intervals hold what operators give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from fxapprox.analysis.intervals import EVERYTHING, RULES, Interval, interval
from fxapprox.ir.operators import op_name

# of x between -2 and 3 and y between 0.5 and 2
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda x, y: (x + y) * (x - 2 * y) / y - (-x),
    "an alias of itself": lambda x, y: x * x + y * y,
    "divisors": lambda x, y: y.reciprocal() + 1 / (1 + y) + y / x.abs(),
    "powers": lambda x, y: x.pow(2) + y.pow(3) + y.pow(-0.5) + y.sqrt() + y.rsqrt() + x.square(),
    "steps": lambda x, y: x.relu() + x.clamp(-1, 1) + torch.where(x > 0, y, x) + x.sign(),
    "bounded": lambda x, y: x.sigmoid() + x.tanh() + x.erf() + x.sin() + x.cos() + x.atan() + x.exp(),
    "softmax": lambda x, y: x.softmax(-1) + x.log_softmax(-1) + (x - x.logsumexp(-1, keepdim=True)),
    "softmax by hand": lambda x, y: (e := (x - x.amax(-1, keepdim=True)).exp()) / e.sum(-1, keepdim=True),
    "averages": lambda x, y: F.avg_pool2d(x, 3, 2, 1).mean((2, 3)) + F.pad(x, (1, 2), value=5).amin((2, 3)),
    "views and copies": lambda x, y: x.flatten(1).clone().double().to(torch.float16)[:, ::2],
}  # fmt: skip


class Bounded(fx.Interpreter):
    """Runs a graph, and holds every value against its interval."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.bounds: dict[fx.Node, Interval] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        low, high = self.bounds[n] = interval(n, self.bounds)
        if isinstance(value, Tensor):
            finite = value[value.isfinite()].double()
            slack = 1e-5 * (1 + abs(finite))
            assert (finite >= low - slack).all(), n.format_node()
            assert (finite <= high + slack).all(), n.format_node()
        return value


def bounded(function: Callable[[Tensor, Tensor], Tensor]) -> Bounded:
    def whole(x: Tensor, y: Tensor) -> Tensor:
        return function(x.clamp_min(-2).clamp_max(3), y.clamp_min(0.5).clamp_max(2))

    x, y = 4 * torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8).exp()
    checked = Bounded(make_fx(whole, tracing_mode="fake")(x, y))
    checked.run(x, y)
    return checked


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_lie_in_their_intervals(name: str) -> None:
    checked = bounded(FUNCTIONS[name])
    known = [node for node, bounds in checked.bounds.items() if node.op == "call_function" and bounds != EVERYTHING]
    assert len(known) > 5


def test_every_rule_is_met() -> None:
    met = {op_name(node) for function in FUNCTIONS.values() for node in bounded(function).bounds}
    assert set(RULES) - met <= {
        "aten._softmax",
        "aten.square",
        "aten.avg_pool1d",
        "aten.avg_pool3d",
        "prims.convert_element_type",
    }


def test_what_is_found_by_shape() -> None:
    def last(function: Callable[[Tensor, Tensor], Tensor]) -> Interval:
        return [bounds for node, bounds in bounded(function).bounds.items() if node.op == "call_function"][-1]

    assert last(lambda x, y: x - x.amax(1, keepdim=True)) == (-math.inf, 0)
    assert last(lambda x, y: x - x.exp().sum(-1, keepdim=True).log()) == (-math.inf, 0)
    assert last(lambda x, y: (x - x.amax(1, keepdim=True)).exp().sum(1)) == (1, math.inf)
    assert last(lambda x, y: (x - x.amax(1, keepdim=True)).exp().sum(2)) == EVERYTHING
    assert last(lambda x, y: x - y.amax(1, keepdim=True)) == (-4, 2.5)
