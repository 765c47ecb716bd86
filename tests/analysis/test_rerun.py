"""What must not be run twice, and what is saved so that it need not be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy

from fxapprox.analysis.rerun import runs_once, values_to_keep
from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import op_name
from tests.passes.graphs import joint_of

W = torch.randn(64, 64, requires_grad=True)
X = torch.randn(32, 64)


def forward_nodes(joint: Joint) -> set[fx.Node]:
    return {node for node in joint.forward_values if node.op == "call_function"}


def kept(model: Callable[..., object], at_hand: str = "") -> set[str]:
    joint = joint_of(model, X)
    needed = forward_nodes(joint)
    found = values_to_keep(needed, joint.gm.graph, {node for node in needed if op_name(node) == at_hand})
    return {op_name(node) for node in found}


def test_what_follows_from_inputs_alone_is_run_again() -> None:
    assert kept(lambda x: (x @ W).relu().sum()) == set()


def test_a_mask_is_kept_not_the_random_numbers() -> None:
    assert kept(lambda x: (F.dropout(x @ W, 0.3) @ W).sum()) == {"aten.gt"}


def test_random_numbers_that_are_used_as_they_are_are_kept() -> None:
    assert kept(lambda x: ((x @ W) * torch.rand_like(x)).sum()) == {"prims.inductor_random"}


def test_what_is_at_hand_costs_nothing() -> None:
    assert "aten.gt" in kept(lambda x: (F.dropout(x @ W, 0.3) @ W).sum(), at_hand="aten.gt")


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE])
def test_collectives_and_what_the_user_wants_saved_run_once(policy: CheckpointPolicy) -> None:
    """torch marks collectives and effects like what a selective checkpoint saves."""
    joint = joint_of(lambda x: ((x @ W).sin() @ W).sum(), X)
    (sine,) = [node for node in forward_nodes(joint) if op_name(node) == "aten.sin"]
    assert not runs_once(sine)
    sine.meta["recompute"] = policy
    assert runs_once(sine)
    assert values_to_keep(forward_nodes(joint), joint.gm.graph, ()) == {sine}


@torch.library.custom_op("fxapprox_tests::unknown", mutates_args=())
def unknown(x: Tensor) -> Tensor:
    return x.clone()


@unknown.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


unknown.register_autograd(lambda ctx, gradient: gradient)


def test_unknown_operators_run_once() -> None:
    assert kept(lambda x: (unknown(x @ W) @ W).sum()) == {"fxapprox_tests.unknown"}


def test_an_input_that_changes_in_place_is_not_read_again() -> None:
    state = torch.ones(64)

    def model(x: Tensor) -> Tensor:
        y = ((x * state).sin() @ W).sum()
        state.mul_(0.5)
        return y

    joint = joint_of(model, X)
    (product,) = [node for node in forward_nodes(joint) if op_name(node) == "aten.sin"]
    with pytest.raises(UnsupportedGraph, match="changes in place"):
        values_to_keep({product, *product.all_input_nodes} & forward_nodes(joint), joint.gm.graph, ())
    assert values_to_keep({product}, joint.gm.graph, ()) == set()
