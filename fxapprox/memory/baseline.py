"""What is alive when under plain torch.compile."""

from __future__ import annotations

from collections.abc import Sequence

from fxapprox import torch_adapter as adapter
from fxapprox.ir.joint import Joint
from fxapprox.memory.timeline import Timeline, timeline


def baseline_timeline(joint: Joint, saved: Sequence[str], lowering: str) -> Timeline:
    """The timeline of a step of plain torch.compile, which saves these values of the joint graph."""
    nodes = {node.name: node for node in joint.gm.graph.nodes}
    halves = adapter.split(
        joint.gm, [nodes[name] for name in saved],
        num_fwd_outputs=joint.num_fwd_outputs, static_inputs=joint.static_inputs,
    )  # fmt: skip
    forward, backward = adapter.finish_split(*halves)
    return timeline(forward, backward, num_fwd_outputs=joint.num_fwd_outputs, lowering=lowering, plain=True)
