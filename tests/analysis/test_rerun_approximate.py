"""What has to come from forward itself when operators run again on approximate values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxapprox.analysis.rerun_approximate import Branches, branches_of
from fxapprox.ir.operators import op_name
from fxapprox.passes.classify import classify
from tests.passes.graphs import joint_of

W = torch.randn(64, 64, requires_grad=True)
X = torch.randn(256, 64)
IMAGE = torch.randn(2, 4, 16, 16)


def followed(
    model: Callable[..., object], x: Tensor, first: str, bits: int | None = 8, known: str = ""
) -> tuple[Branches, set[str], set[str]]:
    """(branches, names of what is held, names of what is approximate), the first value of an operator being encoded."""
    joint = joint_of(model, x)
    activations = {a.name: a for a in classify(joint, min_bytes=0)}
    needed = {node for node in joint.forward_values if node.op == "call_function"}
    encoded = [node for node in joint.gm.graph.nodes if op_name(node) == first][:1]
    exact = {node for node in needed if op_name(node) == known}
    found = branches_of(joint.gm.graph, needed, encoded, exact, activations, bits)
    return found, operators(found.held), operators(found.approximate)


def operators(nodes: set[fx.Node]) -> set[str]:
    return {op_name(node).removeprefix("aten.").removeprefix("prims.") for node in nodes}


def test_nothing_approximate_nothing_held() -> None:
    found, held, approximate = followed(lambda x: F.relu(x @ W).sum(), X, "none")
    assert not held | approximate
    assert not found.rectifiers.keys() | found.signs.keys() | found.clamps.keys()


def test_products_and_sums_are_approximate() -> None:
    _, held, approximate = followed(lambda x: ((x @ W) @ W + x).sum(), X, "aten.mm")
    assert not held & {"mm", "add"}
    assert {"mm", "add"} <= approximate


def test_a_rectifier_and_its_comparisons_come_from_one_mask() -> None:
    found, held, _ = followed(lambda x: (F.relu(x @ W) @ W).sum(), X, "aten.mm")
    ((rectifier, operand),) = found.rectifiers.items()
    assert (op_name(rectifier), op_name(operand)) == ("aten.relu", "aten.mm")
    assert {op_name(node): sign for node, sign in found.signs.items()} == {"aten.le": (rectifier, False)}
    assert list(found.sources(rectifier)) == [operand]
    assert [list(found.sources(node)) for node in found.signs] == [[]]
    assert "le" not in held


def test_what_is_known_stops_the_approximation() -> None:
    found, held, approximate = followed(lambda x: (F.relu(x @ W) @ W).sum(), X, "aten.mm", known="aten.relu")
    assert not found.rectifiers
    assert approximate == {"mm"}
    assert not held


def test_clamps_take_forwards_side() -> None:
    found, _, approximate = followed(lambda x: (F.hardswish(x @ W) @ W).sum(), X, "aten.mm")
    assert operators(set(found.rectifiers)) == {"clamp_min"}
    assert operators(set(found.clamps)) == {"clamp_max"}
    assert all(list(found.sources(node)) == [node.args[0]] for node in found.clamps)
    assert {"clamp_min", "clamp_max"} <= approximate


@pytest.mark.parametrize("op", [F.relu6, F.hardsigmoid, lambda x: F.leaky_relu(x, 0.1), F.softplus, torch.abs])
def test_no_comparison_is_made_again(op: Callable[[Tensor], Tensor]) -> None:
    _, _, approximate = followed(lambda x: (op(x @ W) @ W).sum(), X, "aten.mm")
    assert not approximate & {"le", "lt", "gt", "ge", "eq", "ne", "logical_or", "logical_and", "sign", "bitwise_or"}


def test_pooling_keeps_its_choice() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3))
    _, held, approximate = followed(lambda x: model(x).sum(), IMAGE, "aten.convolution")
    assert "getitem" in held
    assert "getitem" not in approximate


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(64), nn.LayerNorm(64)])
def test_statistics_are_held(norm: nn.Module) -> None:
    _, held, approximate = followed(lambda x: (norm(x @ W) @ W).sum(), X, "aten.mm")
    assert "getitem" in held
    assert not {"getitem", "rsqrt"} & approximate
    assert {"sub", "mul"} <= approximate


@pytest.mark.parametrize("bits", [8, 4])
def test_a_softmax_keeps_its_maximum_and_its_sum(bits: int) -> None:
    _, held, approximate = followed(lambda x: (torch.softmax(x @ W, -1) @ W).sum(), X, "aten.mm", bits)
    assert "amax" in held
    assert ("exp" in approximate) == (bits == 8)
    assert "sum" in held or "exp" in held


def test_a_log_softmax_keeps_its_statistics() -> None:
    _, held, approximate = followed(lambda x: F.log_softmax(x @ W, -1)[:, 0].sum(), X, "aten.mm")
    assert "amax" in held
    assert not {"amax", "log"} & approximate


def test_fused_attention_keeps_its_log_sums() -> None:
    def attend(x: Tensor) -> Tensor:
        q = (x @ W).view(2, 128, 2, 32).transpose(1, 2)
        return (F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(256, 64) @ W).sum()

    found, _, _ = followed(attend, X, "aten.mm")
    results = {
        node.args[1]: node in found.approximate
        for node in found.approximate | found.held if op_name(node) == "getitem"
    }  # fmt: skip
    assert results.pop(0)
    assert results
    assert not any(results.values())
