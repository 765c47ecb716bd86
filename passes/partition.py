"""Splits the joint graph into forward and backward along a plan, with nothing encoded yet."""

from __future__ import annotations

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.activation import Plan
from fxapprox.errors import InvalidPlan
from fxapprox.graph import Joint
from fxapprox.torch_adapter import Partition


def partition(joint: Joint, plan: Plan) -> Partition:
    """Forward and backward graphs that save exactly the plan's values, each as it is.

    Requires: a plan made for this joint graph.
    Ensures: backward reads the plan's values and free ones, and recomputes the rest; AOTAutograd's order of inputs
        and outputs.
    Changes numerics: no.

    Raises:
        InvalidPlan: the plan names a value that the graph does not have.
    """
    nodes = {node.name: node for node in joint.gm.graph.nodes}
    missing = [name for name in plan.saved_names if name not in nodes]
    if missing:
        raise InvalidPlan(f"the plan stores {missing[0]!r}, which the joint graph does not have")
    saved = [nodes[name] for name in plan.saved_names]
    free = [n for n in joint.forward_values if n.op == "placeholder"]
    # torch drops a saved value that backward turns out not to read
    forward, backward = adapter.split(
        joint.gm, [*free, *_returned(joint, saved), *saved],
        num_fwd_outputs=joint.num_fwd_outputs, static_inputs=joint.static_inputs,
    )  # fmt: skip
    return forward, backward


def _returned(joint: Joint, saved: list[fx.Node]) -> list[fx.Node]:
    """User outputs that backward may read: alive anyway."""
    seen = set(saved)
    found = []
    for node in joint.outputs[0]:
        new = (
            isinstance(node, fx.Node) and node.op == "call_function" and node not in joint.backward and node not in seen
        )
        if new and "val" in node.meta:
            seen.add(node)
            found.append(node)
    return found
