"""Gives sums of large values memory of their own, so that their addends can die.

A residual stream is a chain of additions. Where nothing saves the sums, Inductor computes each of them again in every
kernel that reads it, from all addends since the last value it did put into memory; up to four of these live on through
many layers. Here a sum that has several readers is computed once. Its readers read that, its addends die, and it
often takes the place of one of them.
"""

from __future__ import annotations

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import is_cheap, op_name, operator_of
from fxapprox.ir.tensors import nbytes, tensor_of

LARGE = 2**16  # bytes: below that, not worth a node
SHARE = 4  # a source smaller than this part of a result, a scale for each row say, is read for little
FAR = 16  # nodes between a product and its sum


def materialize(forward: fx.GraphModule) -> tuple[str, ...]:
    """Lets the readers of a large pointwise result that is made of several large values read it from memory.

    Requires: a forward graph as ``encode`` makes it.
    Ensures: no value changes; outputs are the nodes that they were.
    Changes numerics: no.

    Returns: the names of the values that got memory of their own.
    """
    found = []
    reads: dict[fx.Node, frozenset[fx.Node]] = {}  # the large values in memory that each result is computed from
    for node in list(forward.graph.nodes):
        reads[node] = _reads(node, reads)
        if len(node.users) < 2 or sum(SHARE * _nbytes(source) >= _nbytes(node) for source in reads[node]) < 2:
            continue
        if any(user.op == "output" for user in node.users):  # in memory anyway
            reads[node] = frozenset({node})
            continue
        kept = read_from_memory(node)
        reads[kept] = frozenset({kept})
        found.append(node.name)
    return tuple(found)


def read_from_memory(node: fx.Node) -> fx.Node:
    """Lets all that read a value read it from memory; what they read then."""
    readers = list(node.users)
    with node.graph.inserting_after(node):
        kept = node.graph.call_function(adapter.IN_MEMORY, (node,))
    kept.meta = node.meta.copy()
    for reader in readers:
        reader.replace_input_with(node, kept)
    return kept


def _reads(node: fx.Node, reads: dict[fx.Node, frozenset[fx.Node]]) -> frozenset[fx.Node]:
    if _nbytes(node) < LARGE:
        return frozenset()
    if node.op != "call_function" or not is_cheap(node):
        return frozenset({node})
    return frozenset().union(*(reads[source] for source in node.all_input_nodes))


def _nbytes(node: fx.Node) -> int:
    value = tensor_of(node)
    return 0 if value is None else nbytes(value)


def settle_products(backward: fx.GraphModule) -> tuple[str, ...]:
    """Lets products be computed where they stand, also where they are added to something far behind.

    Inductor makes one operator of a product and a sum, at the place of the sum. The gradient of a weight that is used
    twice (an embedding that is also the head) is such a sum, at the end of backward, and the product's operands (the
    gradient of the logits) would live until then.

    Requires: a backward graph in the order in which it will run.
    Ensures: no value changes.
    Changes numerics: no, but Inductor may round the sum once more.

    Returns: the names of the products.
    """
    found = []
    position = {node: i for i, node in enumerate(backward.graph.nodes)}
    for node in list(position):
        users = list(node.users)
        far = len(users) == 1 and op_name(users[0]) == "aten.add" and position[users[0]] - position[node] > FAR
        if operator_of(node).factors != (0, 1) or not far:
            continue
        with backward.graph.inserting_after(node):
            kept = backward.graph.call_function(adapter.IN_MEMORY, (node,))
        kept.meta = node.meta.copy()
        users[0].replace_input_with(node, kept)
        found.append(node.name)
    return tuple(found)
