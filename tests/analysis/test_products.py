"""From a value back to the products of activations that it is another form of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxapprox.analysis.facts import Facts
from fxapprox.analysis.products import ways
from fxapprox.ir.operators import op_name
from tests.passes.graphs import joint_of

X = torch.randn(16, 6, 8)
RUN = 24  # neighbours in a row of the last value
# the products that are found, each with the neighbours of theirs that lie in one row
CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[tuple[str, int]]]] = {
    "a product": (lambda a, b: a * b, [("aten.mul", 24)]),
    "with a sign": (lambda a, b: -(a * b), [("aten.mul", 24)]),
    "permuted": (lambda a, b: (a * b).transpose(0, 1), [("aten.mul", 8)]),
    "rows moved": (lambda a, b: (a * b).transpose(1, 2), [("aten.mul", 1)]),
    "joined": (lambda a, b: torch.cat([a * b, a], -1), [("aten.mul", 8)]),
    "matrices": (lambda a, b: (a @ b.mT).tanh().neg(), [("aten.bmm", 24)]),
    "a factor of each row": (lambda a, b: a * b.sigmoid().mean(-1, keepdim=True), [("aten.mul", 24)]),
    "its own statistic": (lambda a, b: a * a.square().mean(-1, keepdim=True).rsqrt(), []),
    "an exponential": (lambda a, b: (a * b).exp(), []),
    "one activation": (lambda a, b: 2 * a, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products_behind_a_value(name: str) -> None:
    function, expected = CASES[name]
    w = torch.randn(2, 8, 8, requires_grad=True)
    joint = joint_of(lambda x: function(torch.tanh(x @ w[0]), torch.tanh(x @ w[1])).sin().square().mean(), X)
    facts = Facts.of(joint)
    (last,) = [node.all_input_nodes[0] for node in joint.forward_values if op_name(node) == "aten.sin"]
    found = [way[-1] for way in ways(last, RUN, facts)]
    assert [(op_name(node), run) for node, run in found if op_name(node) != "aten.view"] == expected
