"""Tells what a graph that has been split saves, for the graphs behind a break."""

from __future__ import annotations

from torch import fx

from fxapprox.memory.between import Link
from fxapprox.memory.held import saved_by
from fxapprox.passes.rewrite import Rewrite


def note_saved(link: Link, result: Rewrite, gm: fx.GraphModule) -> None:
    """Tells what the two halves of a joint graph save, and what torch's own would."""
    count, saved = result.joint.num_fwd_outputs, set(result.baseline)
    link.note(
        (result.forward.graph, saved_by(result.forward, count)),
        (gm.graph, [node for node in gm.graph.nodes if node.name in saved]),
        num_fwd_outputs=count, counted=result.counted | result.counted_for_plain,
    )  # fmt: skip
