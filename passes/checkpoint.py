"""Computes stretches of forward again in backward, from values at their boundaries, instead of saving what they make.

What is computed again are the saved values themselves, codes included: backward runs a segment of the forward graph
once more, encodes its activations as forward did, and then reads them. So the bits of a plan and its segments are
independent of each other, a segment's activations never stand there at full size all at once, and from exact
boundaries the codes, and with them the gradients, are those that they would be without segments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.rerun import values_to_keep
from fxapprox.analysis.rerun_approximate import Branches, branches_of, original
from fxapprox.codecs import Codec, Exact, Integer, Like, Mask
from fxapprox.ir.arguments import argument
from fxapprox.ir.crossing import Crossing
from fxapprox.ir.inline import Inliner
from fxapprox.ir.joint import erase_unused, nodes_between
from fxapprox.ir.records import Activation, Held, Segment, Spliced
from fxapprox.ir.tensors import flops, memory_order, nbytes, symbolic_shape, tensor_of
from fxapprox.options import Count
from fxapprox.passes.encode import Parts, after, name_parts
from fxapprox.passes.partition import choose
from fxapprox.passes.segment import Cut, needed_for, segment
from fxapprox.sizes import evaluate, hints_of


def checkpoint(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    parts: Sequence[Parts],
    count: Count,
    *,
    num_fwd_outputs: int,
    codec: Codec | None = None,
    activations: Sequence[Activation] = (),
    images: Collection[str] = (),
    gradients: Collection[str] = (),
) -> tuple[Segment, ...]:
    """Replaces saved values by their boundaries, and computes them again just before backward reads them.

    Requires: two graphs that belong together, backward in the order in which it will run; ``parts`` as ``encode``
        returned them.
    Ensures: forward's own outputs are untouched; nothing random, no collective and nothing with an effect is run
        twice; the last segment is saved as it was; no decision is taken again from an approximate value.
    Changes numerics: of backward, with a codec; without one, no.

    Args:
        count: how many segments; "sqrt" or a fraction: see ``segment``.
        codec: how the values at the boundaries are stored; None: exactly.
        activations: of the joint graph; asked with a codec.
        images: names of the values that will lie channels-last in memory.
        gradients: names of gradients that forward computes; they stay saved.

    Returns: the segments that are computed again, in forward's order; none if that saves nothing.

    Raises:
        UnsupportedGraph: a segment reads an input that forward changes in place.
    """
    known = {a.name: a for a in activations}
    crossing = Crossing(forward, backward, num_fwd_outputs)
    saved = [node for node in crossing.inputs if node.op == "call_function"]
    packed = _packed(forward, parts)
    kept = values_to_keep(needed_for(saved), forward.graph, {*saved, *packed})
    kept |= {node for node in saved if node.name in gradients}
    targets = [node for node in saved if node not in kept]
    coded = _encoded(forward, codec, known)
    cuts = segment(
        forward, targets, count, kept=kept, sizes=coded, together=[own for made in parts if (own := made.own)]
    )
    if not cuts:
        return ()
    boundary = {node for cut in cuts for node in cut.carried}
    encoded = coded.keys() & boundary.difference(kept, saved)
    position = {node: i for i, node in enumerate(forward.graph.nodes)}
    targets = [node for node in targets if position[node] < cuts[-1].at and node not in boundary]
    exact = boundary | kept
    branches = branches_of(
        forward.graph, needed_for(targets, exact), encoded, exact - encoded, known, codec.bits if codec else None
    )
    branches.held |= {node for node in targets if _has_to_be_exact(node, branches, known)}
    carried = exact | branches.held
    carried |= {packed[node][1] for node in carried & packed.keys()}
    codes = {node for made in parts if type(made.entry.codec) is not Exact for node in made.nodes}
    codecs = {
        node: codec.for_channels_last() if node.name in images else codec for node in encoded if codec is not None
    }
    again = _Again(forward, backward, crossing, position, carried, codes, packed, branches, codecs)
    found = []
    for start, end in zip([Cut(0, ()), *cuts[:-1]], cuts, strict=True):
        inside = [node for node in targets if start.at <= position[node] < end.at and node not in carried]
        if inside:
            operators = again.run(inside)
            names = _names(map(original, start.carried)), _names(inside)
            found.append(Segment(*names, len(operators), sum(map(flops, operators)), *again.notes()))
    crossing.write()
    for graph in (forward, backward):
        erase_unused(graph.graph)
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
        branches: how operators come back whose operands are approximate.
        codecs: of those of the carried values that are stored in a code.
        held, pairs, spliced: what ``notes`` tells.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    crossing: Crossing
    position: Mapping[fx.Node, int]
    carried: Collection[fx.Node]
    codes: Collection[fx.Node]
    packed: dict[fx.Node, tuple[Codec, fx.Node]]
    branches: Branches
    codecs: Mapping[fx.Node, Codec]
    inputs: dict[str, fx.Node] = field(init=False)
    masks: dict[fx.Node, fx.Node] = field(default_factory=dict)
    parts: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    spliced: list[Spliced] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = {n.name: n for n in self.backward.graph.find_nodes(op="placeholder")}
        self.forward_nodes = {n.name: n for n in self.forward.graph.nodes}
        self.writers = Inliner(self.forward), Inliner(self.backward)

    def run(self, targets: Sequence[fx.Node]) -> list[fx.Node]:
        """Computes saved values again before their first reader, and saves them no more; returns what is run again."""
        slots = {node: self.crossing.inputs[node] for node in targets}
        before = min(user for slot in slots.values() for user in slot.users)
        nodes = sorted(needed_for(targets, self.carried, self.branches.sources), key=self.position.__getitem__)
        sources = {source for node in nodes for source in self.branches.sources(node)}.difference(nodes)
        env = {source: self._at_hand(source, before) for source in sorted(sources, key=self.position.__getitem__)}
        for node in nodes:
            env[node] = self._again(node, env, before)
            if node in slots and node in self.codes:
                env[node] = self._fenced(env[node], before)
        for node, slot in slots.items():
            slot.replace_all_uses_with(env[node])
        self.crossing.drop(targets)
        return nodes

    def notes(self) -> tuple[tuple[Held, ...], tuple[tuple[str, str], ...], tuple[Spliced, ...]]:
        """Since the last call: what has been saved that was not, what was run again, and codecs: as in ``Segment``."""
        found = tuple(self.held), tuple(self.pairs), tuple(self.spliced)
        self.held, self.pairs, self.spliced = [], [], []
        return found

    def _again(self, node: fx.Node, env: dict[fx.Node, fx.Node], before: fx.Node) -> fx.Node:
        """One operator, run again as far as its operands allow."""
        if node in self.branches.rectifiers:
            mask = self._mask(node, env, before)
            return self._write(_rectify, [mask, env[self.branches.rectifiers[node]]], before, "rectify", node)
        if node in self.branches.signs:
            rectifier, positive = self.branches.signs[node]
            mask = self._mask(rectifier, env, before)
            return mask if positive else self._write(_negate, [mask], before, "negate", node)
        if node in self.branches.clamps:
            clamp = self.branches.clamps[node]
            predicate = self._at_hand(self.forward_nodes[clamp.predicate], before)
            return self._write(choose(clamp), [predicate, env[argument(node, 0)]], before, clamp, node)
        with self.backward.graph.inserting_before(before):
            copied = adapter.copy_node(node, self.backward.graph, env.__getitem__)
        self.pairs.append((copied.name, node.name))
        return copied

    def _at_hand(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """A value that is not computed again, in backward: one of forward's inputs, or saved, maybe in few bits."""
        if node.op == "placeholder" and node.name in self.inputs:
            return self.inputs[node.name]
        value = tensor_of(node)
        if value is None:
            return self.crossing.take(node)
        like = Like.of(value, memory_order(value))
        if (codec := self.codecs.get(node)) is not None:
            if node not in self.parts:
                self.parts[node] = self._save(codec, node)
            return self._decode(node, codec, self.parts[node], like, before)
        if value.dtype == torch.bool and node not in self.packed:
            (part,) = self._save(Mask(), node)
            self.packed[node] = Mask(), part
        if node in self.packed:
            codec, part = self.packed[node]
            return self._decode(node, codec, (part,), like, before)
        if node not in self.crossing.inputs and node.op == "call_function":
            self._note(node, Exact(), (node,))
        return self.crossing.take(node)

    def _mask(self, rectifier: fx.Node, env: dict[fx.Node, fx.Node], before: fx.Node) -> fx.Node:
        """Where forward's rectifier let its operand through."""
        if rectifier not in self.masks:
            place = after([rectifier])
            (mask,) = self.writers[0].inline(_sign, [rectifier], before=place, key="sign")
            adapter.rename(mask, f"{rectifier.name}_positive")
            self.masks[rectifier] = mask
        mask = self.masks[rectifier]
        if mask not in env:
            env[mask] = self._at_hand(mask, before)
        return env[mask]

    def _save(self, codec: Codec, node: fx.Node) -> tuple[fx.Node, ...]:
        parts = self.writers[0].inline(codec.encode, [node], before=after([node]), key=("encode", codec))
        name_parts(original(node).name, parts)
        self._note(node, codec, parts)
        self.spliced.append(Spliced(original(node).name, codec, encode=_names(nodes_between([node], parts))))
        return parts

    def _note(self, node: fx.Node, codec: Codec, parts: Sequence[fx.Node]) -> None:
        self.held.append(Held(original(node).name, codec, _names(parts)))

    def _decode(self, node: fx.Node, codec: Codec, parts: Sequence[fx.Node], like: Like, before: fx.Node) -> fx.Node:
        name = original(node).name
        saved = [self.crossing.take(part) for part in parts]
        (decoded,) = self.writers[1].inline(
            lambda *parts: (codec.decode(parts, like),), saved, before=before, key=("decode", codec, like.key)
        )
        self.spliced.append(Spliced(name, codec, decode=_names(nodes_between(saved, [decoded]))))
        return decoded

    def _fenced(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """A code that Inductor does not decode in the kernel that makes it: that would keep the decoded value."""
        with self.backward.graph.inserting_before(before):
            kept = self.backward.graph.call_function(adapter.FENCE, (node,))
        kept.meta = node.meta.copy()
        return kept

    def _write(
        self, fn: Callable[..., Any], args: Sequence[fx.Node], before: fx.Node, key: Hashable, node: fx.Node
    ) -> fx.Node:
        """What comes back in place of a node of forward."""
        (made,) = self.writers[1].inline(fn, args, before=before, key=key)
        self.pairs += ((written.name, node.name) for written in nodes_between(args, [made]))
        return made


def _names(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _sign(x: Tensor) -> tuple[Tensor]:
    return (torch.logical_not(x <= 0),)  # a rectifier lets NaN through


def _negate(x: Tensor) -> tuple[Tensor]:
    return (torch.logical_not(x),)


def _rectify(mask: Tensor, x: Tensor) -> tuple[Tensor]:
    return (torch.where(mask, x, 0.0),)


def _encoded(forward: fx.GraphModule, codec: Codec | None, known: Mapping[str, Activation]) -> dict[fx.Node, int]:
    """The values that may stand in a boundary as a code, and its bytes."""
    found, hints = {}, hints_of(adapter.dynamic_sizes(forward))
    for node in forward.graph.nodes:
        value = tensor_of(node)
        if codec is None or value is None or node.name not in known or not known[node.name].approximable:
            continue
        if value.dtype.is_complex:
            continue  # the codec is one of real numbers
        size = evaluate(codec.nbytes(symbolic_shape(value), value.dtype), hints)
        if not known[node.name].kept and size < nbytes(value):
            found[node] = size
    return found


def _has_to_be_exact(node: fx.Node, branches: Branches, known: Mapping[str, Activation]) -> bool:
    """Whether backward reads an approximate value that it needs as it was."""
    return node in branches.approximate and node.name in known and not known[node.name].approximable


def _packed(forward: fx.GraphModule, parts: Sequence[Parts]) -> dict[fx.Node, tuple[Codec, fx.Node]]:
    """The values that can be had without loss from one saved part."""
    nodes = {node.name: node for node in forward.graph.nodes}
    return {
        nodes[made.entry.name]: (made.entry.codec, made.nodes[0])
        for made in parts if isinstance(made.entry.codec, (Mask, Integer)) and len(made.nodes) == 1
    }  # fmt: skip
