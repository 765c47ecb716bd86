"""partition: the two halves of a joint graph, nothing encoded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxapprox.codecs import Exact
from fxapprox.errors import InvalidPlan
from fxapprox.ir.operators import op_name
from fxapprox.ir.records import Class, Plan, Stored
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.partition import partition
from fxapprox.passes.plan import plan
from tests.passes.graphs import LAYERS, joint_of, written

W = torch.randn(16, 16, requires_grad=True)


def test_what_backward_reads_is_saved_once() -> None:
    joint = written(LAYERS)
    chosen = plan(classify(joint, min_bytes=0), Options(bits=None, min_bytes=0))
    assert chosen.saved_names == ("y",)
    forward, backward = partition(joint, chosen)
    assert [n.name for n in forward.graph.nodes if n.op == "call_function"] == ["h", "y", "z"]
    assert "h" not in {n.name for n in backward.graph.nodes}


def test_forward_returns_what_backward_takes() -> None:
    joint = joint_of(lambda x: (F.gelu(x @ W) @ W).sum(), torch.randn(32, 16))
    chosen = plan(classify(joint, min_bytes=0), Options(bits=None, min_bytes=0))
    forward, backward = partition(joint, chosen)
    saved = [n.name for n in forward.graph.find_nodes(op="output")[0].args[0]][1:]  # type: ignore[union-attr]
    taken = [n.name for n in backward.graph.find_nodes(op="placeholder") if "tangents" not in n.name]
    assert saved == taken


def test_a_plan_of_another_graph_is_refused() -> None:
    stranger = Plan((Stored("not_here", Exact(), Class.LINEAR, 0, ""),), ())
    with pytest.raises(InvalidPlan, match="not_here"):
        partition(written(LAYERS), stranger)


def test_masks_are_taken_where_their_operands_are_made() -> None:
    """AOTAutograd's order has the masks of all layers at the end of forward, after every activation."""
    joint = joint_of(lambda x: F.leaky_relu(F.leaky_relu(x @ W + 1) @ W + 1).sum(), torch.randn(32, 16))
    forward, _ = partition(joint, plan(classify(joint, min_bytes=0), Options(bits=None, min_bytes=0)))
    order = [op_name(n) for n in forward.graph.nodes if n.op == "call_function"]
    first_mask = order.index("aten.gt")
    assert order[:first_mask].count("aten.mm") == 1
    forward.graph.lint()


def test_what_forward_asserts_is_not_asserted_again() -> None:
    """one_hot asserts its range: of an argmax, which backward would have to take from an approximate value."""

    def routed(x: Tensor) -> Tensor:
        scores = torch.softmax(x @ W, -1)
        return (F.one_hot(scores.argmax(-1), 16) * scores).square().sum()

    joint = joint_of(routed, torch.randn(32, 16))
    forward, backward = partition(joint, plan(classify(joint, min_bytes=0), Options(bits=8, min_bytes=0)))
    asserted = {op_name(n) for n in joint.gm.graph.nodes} & {"aten._assert_async"}  # since torch 2.12
    assert asserted <= {op_name(n) for n in forward.graph.nodes}
    assert not {"aten._assert_async", "aten.argmax"} & {op_name(n) for n in backward.graph.nodes}


def test_clamps_of_approximate_values_take_forwards_decisions() -> None:
    joint = joint_of(lambda x: (F.hardswish(x @ W) @ W).sum(), torch.randn(32, 16))
    chosen = plan(classify(joint, min_bytes=0), Options(bits=8, min_bytes=0))
    assert [(clamp.inside, clamp.limit) for _, clamp in chosen.clamps] == [(False, 0), (True, 6)]
    assert {clamp.predicate for _, clamp in chosen.clamps} <= set(chosen.saved_names)
    forward, backward = partition(joint, chosen)
    assert {"aten.clamp_min", "aten.clamp_max"} <= {op_name(n) for n in forward.graph.nodes}
    assert not {"aten.clamp_min", "aten.clamp_max"} & {op_name(n) for n in backward.graph.nodes}
    backward.graph.lint()


def test_exact_clamps_run_again_as_they_are() -> None:
    joint = joint_of(lambda x: (F.hardswish(x @ W) @ W).sum(), torch.randn(32, 16))
    assert plan(classify(joint, min_bytes=0), Options(bits=None, min_bytes=0)).clamps == ()
