"""What must not be run twice: random numbers, collectives, effects, and operators that nobody has described.

Where backward computes a part of forward again it takes these values, or the smallest that follows from them alone (of
a dropout the mask, not the random numbers), from what forward saved.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.operators import is_cheap, is_random, op_name
from fxapprox.ir.source import source_line
from fxapprox.ir.tensors import nbytes, numel, tensor_of

# Operators of these give the same result for the same operands, unless they are tagged.
FAMILIES = ("aten.", "prims.", "fxapprox.")


def runs_once(node: fx.Node) -> bool:
    """Whether the operator must not be run again."""
    name = op_name(node)
    if name == "getitem" or adapter.is_symbolic_scalar(node):
        return False
    known = name.startswith(FAMILIES) and not adapter.mutates(node)
    return not known or is_random(node) or adapter.wants_saved(node) or adapter.is_opaque(node)


def constants(needed: Collection[fx.Node], graph: fx.Graph) -> set[fx.Node]:
    """Needed operators that are made of nothing but constants and sizes: nothing has to be kept for them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node in needed and not runs_once(node) and found.issuperset(_tensors(node)):
            found.add(node)
    return found


def _tensors(node: fx.Node) -> list[fx.Node]:
    """What the operator reads, but sizes."""
    return [source for source in node.all_input_nodes if not adapter.is_symbolic_scalar(source)]


def values_to_keep(needed: Collection[fx.Node], graph: fx.Graph, at_hand: Collection[fx.Node]) -> set[fx.Node]:
    """The values to be saved so that the others in ``needed`` can be computed without running anything once-only again.

    Args:
        needed: operators of the graph.
        at_hand: values that are saved anyway, or can be decoded without loss from what is saved.

    Raises:
        UnsupportedGraph: an operator reads an input that forward changes in place.
    """
    changed = adapter.changed_inputs(graph)
    fixed = constants(needed, graph)
    price: dict[fx.Node, float] = {}  # of the values that follow from once-only ones alone: bytes to keep for them
    direct: set[fx.Node] = set()  # of those: cheaper kept themselves than computed from what they are made of
    for node in graph.nodes:
        if node not in needed or node in fixed:
            continue
        sources = _tensors(node)
        if any(source in changed for source in sources):
            why = "it would be computed again from an input that forward changes in place"
            raise UnsupportedGraph("checkpoint", why, node=node.name, source=source_line(node))
        once = runs_once(node)
        random = [source for source in sources if source in price]
        if once or (random and all(source in price or source in fixed for source in sources)):
            again = not once and is_cheap(node)
            whole, through = _bytes(node, at_hand), sum(price[s] for s in random) if again else math.inf
            price[node] = min(whole, through)
            if whole <= through:
                direct.add(node)
    found = {node for node in price if node in at_hand}
    stack = [n for n in price if any(user in needed and user not in price for user in n.users)]
    while stack:
        node = stack.pop()
        if node in direct:
            found.add(node)
        else:
            stack += [source for source in node.all_input_nodes if source in price]
    return found


def _bytes(node: fx.Node, at_hand: Collection[fx.Node]) -> float:
    value = tensor_of(node)
    if value is None:
        return math.inf
    if node in at_hand:
        return 0
    return numel(value) / 8 if value.dtype == torch.bool else nbytes(value)
