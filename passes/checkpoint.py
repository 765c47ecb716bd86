"""Computes stretches of forward again in backward, from values at their boundaries, instead of saving what they make.

What is computed again are the saved values themselves, codes included: backward runs a segment of the forward graph
once more, encodes its activations as forward did, and then reads them. So the bits of a plan and its segments are
independent of each other, a segment's activations never stand there at full size all at once, and from exact
boundaries the codes, and with them the gradients, are those that they would be without segments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.activation import Segment
from fxapprox.codecs import Codec, Exact, Integer, Like, Mask
from fxapprox.crossing import Crossing
from fxapprox.graph import Inliner, erase_unused, memory_order, tensor_of
from fxapprox.once import values_to_keep
from fxapprox.operators import op_name
from fxapprox.passes.encode import Parts
from fxapprox.options import Count
from fxapprox.passes.segment import Cut, needed_for, segment


def checkpoint(
    forward: fx.GraphModule, backward: fx.GraphModule, parts: Sequence[Parts], count: Count, *, num_fwd_outputs: int
) -> tuple[Segment, ...]:
    """Replaces saved values by their boundaries, and computes them again just before backward reads them.

    Requires: two graphs that belong together, backward in the order in which it will run; ``parts`` as ``encode``
        returned them.
    Ensures: forward's own outputs are untouched; nothing random, no collective and nothing with an effect is run
        twice; the last segment is saved as it was.
    Changes numerics: no.

    Args:
        count: how many segments; "sqrt": as many as give the lowest peak.

    Returns: the segments that are computed again, in forward's order; none if that saves nothing.

    Raises:
        UnsupportedGraph: a segment reads an input that forward changes in place.
    """
    crossing = Crossing(forward, backward, num_fwd_outputs)
    saved = [node for node in crossing.inputs if node.op == "call_function"]
    packed = _packed(forward, parts)
    kept = values_to_keep(needed_for(saved), forward.graph, {*saved, *packed})
    cuts = segment(forward, [node for node in saved if node not in kept], count, kept=kept)
    if not cuts:
        return ()
    carried = {node for cut in cuts for node in cut.carried} | kept
    position = {node: i for i, node in enumerate(forward.graph.nodes)}
    codes = {node for entry in parts if type(entry.entry.codec) is not Exact for node in entry.nodes}
    again = _Again(forward, backward, crossing, position, carried, codes, packed)
    found = []
    for start, end in zip([Cut(0, ()), *cuts[:-1]], cuts, strict=True):
        inside = [node for node in saved if start.at <= position[node] < end.at and node not in carried]
        if inside:
            operators = again.run(inside)
            names = tuple(node.name for node in start.carried), tuple(node.name for node in inside)
            found.append(Segment(*names, operators))
    crossing.write()
    for graph in (forward, backward):
        erase_unused(graph.graph)
        graph.graph.lint()
        graph.recompile()
    return tuple(found)


@dataclass
class _Again:
    """Writes recomputations into the backward graph.

    Attributes:
        position: of forward's nodes in their order.
        carried: forward's values from which the others are computed.
        codes: values that have to come into memory: Inductor would decode them straight from their activation, and
            keep that instead.
        packed: {a decision that is saved in few bits: (its codec, the saved part)}.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    crossing: Crossing
    position: Mapping[fx.Node, int]
    carried: Collection[fx.Node]
    codes: Collection[fx.Node]
    packed: dict[fx.Node, tuple[Codec, fx.Node]]
    primals: dict[str, fx.Node] = field(init=False)
    writer: Inliner = field(init=False)

    def __post_init__(self) -> None:
        self.primals = {n.name: n for n in self.backward.graph.find_nodes(op="placeholder")}
        self.writer = Inliner(self.backward, {})

    def run(self, targets: Sequence[fx.Node]) -> int:
        """Computes saved values again before their first reader, and saves them no more; returns how many operators."""
        slots = {node: self.crossing.inputs[node] for node in targets}
        before = min(user for slot in slots.values() for user in slot.users)
        nodes = sorted(needed_for(targets, self.carried), key=self.position.__getitem__)
        sources = {source for node in nodes for source in node.all_input_nodes}.difference(nodes)
        env = {source: self._at_hand(source, before) for source in sorted(sources, key=self.position.__getitem__)}
        for node in nodes:
            with self.backward.graph.inserting_before(before):
                env[node] = adapter.copy_node(node, self.backward.graph, env.__getitem__)
            if node in slots and node in self.codes and op_name(node) != "prims.inductor_force_stride_order":
                (env[node],) = self.writer.inline(_in_memory, [env[node]], before=before, key="in memory")
        for node, slot in slots.items():
            slot.replace_all_uses_with(env[node])
        self.crossing.drop(targets)
        return len(nodes)

    def _at_hand(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """A value that is not computed again, in backward: one of forward's inputs, or saved, maybe in few bits."""
        if node.op == "placeholder" and node.name in self.primals:
            return self.primals[node.name]
        value = tensor_of(node)
        if value is not None and value.dtype == torch.bool and node not in self.packed:
            after = node.next
            while after.op == "placeholder":
                after = after.next
            (part,) = Inliner(self.forward, {}).inline(Mask().encode, [node], before=after, key=("encode", Mask()))
            self.packed[node] = (Mask(), part)
        if value is None or node not in self.packed:
            return self.crossing.take(node)
        codec, part = self.packed[node]
        like = Like.of(value, memory_order(value))
        key = ("decode", codec, like)
        (decoded,) = self.writer.inline(
            lambda saved: (codec.decode((saved,), like),), [self.crossing.take(part)], before=before, key=key
        )
        return decoded


def _in_memory(x: torch.Tensor) -> tuple[torch.Tensor]:
    return (adapter.materialize(x),)


def _packed(forward: fx.GraphModule, parts: Sequence[Parts]) -> dict[fx.Node, tuple[Codec, fx.Node]]:
    """The values that can be had without loss from one saved part."""
    nodes = {node.name: node for node in forward.graph.nodes}
    return {
        nodes[made.entry.name]: (made.entry.codec, made.nodes[0])
        for made in parts if isinstance(made.entry.codec, (Mask, Integer)) and len(made.nodes) == 1
    }  # fmt: skip
