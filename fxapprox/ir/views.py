"""Pairs of views that undo each other around pointwise operators, taken out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from fxapprox.ir.arguments import operands
from fxapprox.ir.operators import is_pointwise, op_name
from fxapprox.ir.tensors import has_fixed_sizes, tensor_of

RESHAPES = {"aten.view", "aten._unsafe_view", "aten.reshape"}


def cancel_views(graph: fx.Graph, mode: Any) -> bool:
    """Has operators read the rows of a product that would read them through a view, and be viewed as rows again.

    A language model's logits are rows of a product, then (batch, time, vocabulary) while they are cast, then rows: by
    rows they can be sliced anywhere, by the other only between one sequence and the next.

    Requires: values of fixed sizes; others are left as they are.
    Ensures: every value that is left has its name, and its elements in their order.

    Args:
        mode: the fake mode of the graph's values.

    Returns: whether there were any.
    """
    found = False
    for last in list(graph.nodes):
        if not _is_reshape(last) or (chain := _chain(last)) is None:
            continue
        first, source = chain[-1], chain[-1].all_input_nodes[0]
        for node in reversed(chain[:-1]):
            node.replace_input_with(first, source)
            target: Any = node.target
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with mode:
                node.meta["val"] = target(*args, **kwargs)
            first = source = node
        last.replace_all_uses_with(chain[0])
        for view in (last, chain[-1]):
            if not view.users:
                graph.erase_node(view)
        found = True
    return found


def _chain(last: fx.Node) -> list[fx.Node] | None:
    """The operators in front of a view, from the last one to the view that this one undoes; None if it undoes none."""
    chain = list(_unary(last.all_input_nodes[0]))
    if len(chain) < 2 or not _is_reshape(chain[-1]):
        return None
    values = [tensor_of(node) for node in (last, chain[-1].all_input_nodes[0], *chain)]
    if not all(value is not None and has_fixed_sizes(value) and value.is_contiguous() for value in values):
        return None
    return chain if values[0].shape == values[1].shape else None  # type: ignore[union-attr]


def _unary(node: fx.Node) -> Iterator[fx.Node]:
    """The node, and the one value that it is made of, and so on, while each is read by the next alone; up to a view."""
    while is_pointwise(node) and len(node.users) == 1 and len([*operands(node)]) == 1:
        yield node
        node = node.all_input_nodes[0]
    if _is_reshape(node):
        yield node


def _is_reshape(node: fx.Node) -> bool:
    return node.op == "call_function" and op_name(node) in RESHAPES
