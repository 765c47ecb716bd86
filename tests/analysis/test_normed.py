"""What norms are taken of is found by what divides it, in rows of neighbours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxapprox.analysis.facts import Facts
from fxapprox.analysis.normed import normalized, normed
from fxapprox.ir.operators import op_name
from tests.passes.graphs import joint_of

X = torch.randn(8, 6, 4, 4)
CASES: dict[str, tuple[Callable[[Tensor], Tensor], set[int]]] = {
    "layer norm": (lambda h: F.layer_norm(h, (4,)), {4}),
    "layer norm of images": (lambda h: F.layer_norm(h, (6, 4, 4)), {96}),
    "group norm": (lambda h: F.group_norm(h, 3), {32}),
    "batch norm": (lambda h: F.batch_norm(h, None, None, training=True), set()),
    "root mean square": (lambda h: F.rms_norm(h, (4,), eps=1e-5), {4}),
    "length": (lambda h: F.normalize(h, dim=-1), {4}),
    "length over channels": (lambda h: F.normalize(h, dim=1), {1}),
    "sum": (lambda h: h / (1 + h.sum((2, 3), keepdim=True)), {16}),
    "a sum that nothing is divided by": (lambda h: h - h.sum((2, 3), keepdim=True), set()),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_that_a_length_is_taken_of(name: str) -> None:
    function, runs = CASES[name]
    w = torch.rand(4, requires_grad=True)
    joint = joint_of(lambda x: function(torch.tanh(x * w)).square().mean(), X)
    found = list(normed(joint, Facts.of(joint)))
    assert {run for _, run in found} == runs
    assert {op_name(node) for node, _ in found} <= {"aten.tanh", "aten.view"}


def test_what_lies_between_a_value_and_its_norm() -> None:
    w = torch.rand(4, requires_grad=True)
    joint = joint_of(lambda x: torch.tanh(F.layer_norm(torch.tanh(x * w), (4,))).mean(), X)
    facts = Facts.of(joint)
    ((source, _),) = normed(joint, facts)
    assert {op_name(node) for node in normalized(source, facts)} == {"aten.sub", "aten.mul"}
