"""Running forward's operators again from approximate values, without taking any of their decisions again.

A segment that is computed again from an encoded boundary meets the operators that decide: rectifiers, comparisons,
pooling, the statistics that everything is divided by. Deciding on approximate values is what makes a network's
gradients fall apart (Chakrabarti & Moseley 2019, section 3.1). So forward's decisions are kept, in one bit each where
they are a sign, and its statistics as they are; only what depends on its operands smoothly is approximate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.decisions import rectified
from fxapprox.analysis.facts import SMALL
from fxapprox.ir.arguments import argument, operands
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import is_view, kind_of, op_name, operator_of, table_use
from fxapprox.ir.records import Activation, Clamp, Use
from fxapprox.ir.tensors import numel, tensor_of


@dataclass
class Branches:
    """How the operators of a segment come back when their operands are approximate.

    Attributes:
        held: values that are taken from forward as they were.
        rectifiers: {max(z, 0): z}: they come back as z where forward's z was above 0, and as 0 elsewhere.
        signs: {a comparison with zero: (the rectifier that has its mask, whether it is true where that is)}.
        clamps: clamps that come back by a decision of forward's.
        approximate: what is approximate.
    """

    held: set[fx.Node] = field(default_factory=set)
    rectifiers: dict[fx.Node, fx.Node] = field(default_factory=dict)
    signs: dict[fx.Node, tuple[fx.Node, bool]] = field(default_factory=dict)
    clamps: dict[fx.Node, Clamp] = field(default_factory=dict)
    approximate: set[fx.Node] = field(default_factory=set)

    def sources(self, node: fx.Node) -> Iterable[fx.Node]:
        """What a node is computed again from."""
        if node in self.rectifiers:
            return (self.rectifiers[node],)
        if node in self.signs:
            return ()
        if node in self.clamps:
            return (argument(node, 0),)
        return node.all_input_nodes


def branches_of(
    graph: fx.Graph,
    needed: Collection[fx.Node],
    encoded: Collection[fx.Node],
    known: Collection[fx.Node],
    activations: Mapping[str, Activation],
    bits: int | None,
) -> Branches:
    """Follows approximate values through a forward graph, and says what has to come from forward itself.

    Args:
        needed: the operators that are run again.
        encoded: values that are had from a code, and so approximate.
        known: values that are had exactly.
        bits: of the code; None: nothing is encoded.
        activations: those of the joint graph's values; a node that has none belongs to a codec, whose own decisions
            (which code?) may be taken again.
    """
    found = Branches(approximate=set(encoded))
    by_operand: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        z = rectified(node)
        if z is not None:
            by_operand[node] = by_operand[original(z)] = node
    for node in graph.nodes:
        if node not in needed or node in known or node in encoded:
            continue
        touched = [(at, source) for at, source in operands(node) if source in found.approximate]
        if not touched:
            continue
        activation = activations.get(node.name)
        sign = _sign(node, by_operand)
        if sign is not None and sign[0] in needed:
            found.signs[node] = sign
        elif activation is None:
            found.approximate.add(node)  # inside a codec
        elif rectified(node) is not None:
            found.rectifiers[node] = argument(node, 0)
            found.approximate.add(node)
        elif activation.clamp is not None and all(original(s).name == activation.clamp.operand for _, s in touched):
            found.clamps[node] = activation.clamp
            found.approximate.add(node)
        elif _may_be_approximate(node, touched, activation, bits):
            found.approximate.add(node)
        else:
            found.held.add(node)
    return found


def _sign(node: fx.Node, by_operand: Mapping[fx.Node, fx.Node]) -> tuple[fx.Node, bool] | None:
    """(rectifier, what the node is where its operand is positive), if it compares with zero what a rectifier reads."""
    comparison, operand = operator_of(node).compares, argument(node, 0)
    if (
        comparison is None
        or comparison.ties_above  # z and max(z, 0) compare differently
        or argument(node, 1) != 0
        or not isinstance(operand, fx.Node)
        or original(operand) not in by_operand
    ):
        return None
    return by_operand[original(operand)], comparison.above


def _may_be_approximate(
    node: fx.Node, touched: Iterable[tuple[int, fx.Node]], activation: Activation, bits: int | None
) -> bool:
    """Whether an operator's result may follow from these approximate operands."""
    value, maker = tensor_of(node), argument(node, 0)
    if value is None:
        return True  # several results: those that may not be approximate are held one by one
    if op_name(node) == "getitem" and isinstance(maker, fx.Node) and not is_view(maker):
        return kind_of(maker) is Kind.ATTENTION and bool(argument(node, 1) == 0)
    if not value.dtype.is_floating_point or activation.ceiling is not None:
        return False
    sizes = [numel(inner) for _, source in touched if (inner := tensor_of(source)) is not None]
    if any(numel(value) * SMALL <= size for size in sizes):
        return False  # a statistic
    if op_name(node) == "aten.exp" and activation.weights:
        return (bits or 8) >= 8  # of scores; its maximum and its sum are forward's
    uses = {operand.name: operand.use for operand in activation.operands}
    least = Use.SOFTMAX if (bits or 8) >= 8 else Use.SMOOTH
    return all(
        table_use(node, at) is not None and uses.get(original(source).name, Use.SENSITIVE) <= least
        for at, source in touched
    )


def original(node: fx.Node) -> fx.Node:
    """The joint graph's value, behind the hint that it is to be put into memory."""
    while node.target is adapter.IN_MEMORY:
        node = argument(node, 0)
    return node
