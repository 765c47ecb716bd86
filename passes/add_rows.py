"""Adds the rows of an embedding's gradient to the gradient that its weight has already, where it is a layer's, too.

    before                                            after

    a = mm(g, h)                                      a = mm(g, h)
    z = full([words, width], 0)                       add_rows(a, tokens, rows)
    p = index_put(z, [tokens], rows, accumulate)
    s = add(a, p)

A tied weight's gradient is there three times at the end of a step: what the head gives, what the embedding gives, and
their sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.arguments import argument
from fxapprox.ir.joint import erase_unused
from fxapprox.ir.operators import op_name
from fxapprox.ir.rows import is_zero
from fxapprox.ir.tensors import flops, is_float, nbytes, storage_of, tensor_of, value_of

SMALLEST = 2**21  # bytes of the weight: as slices
MASKED = "aten._unsafe_masked_index_put_accumulate"
PUTS = ("aten.index_put", "aten._unsafe_index_put", MASKED)


class _Sum(NamedTuple):
    """A product, and rows that are added to it; where there is a mask, those that it names."""

    product: fx.Node
    words: fx.Node
    rows: fx.Node
    mask: fx.Node | None


def add_rows(backward: fx.GraphModule) -> int:
    """Adds rows to a product in place, instead of to zeros that are added to it.

    Requires: a graph for Inductor.
    Ensures: inputs and outputs are the same.
    Changes numerics: several rows of one word are added one by one to what the product gives, not their sum.

    Returns: how many sums there were.
    """
    graph, count = backward.graph, 0
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
        found = _sum_of(node)
        if found is None:
            continue
        with graph.inserting_before(node):
            rows = found.rows if found.mask is None else _masked(found.rows, found.mask)
            total = adapter.with_rows_added(found.product, found.words, rows)
        total.meta = node.meta.copy()
        adapter.take_place(total, node)
        count += 1
    erase_unused(graph)
    return count


def _sum_of(node: fx.Node) -> _Sum | None:
    """What an addition adds, if it is a product and rows put into zeros, neither of which anybody else reads."""
    if argument(node, "alpha") not in (None, 1) or len(node.all_input_nodes) != 2:
        return None
    for product, put in (node.all_input_nodes, reversed(node.all_input_nodes)):
        value, index = tensor_of(product), _index_of(put)
        if (
            index is not None and value is not None and is_float(value.dtype) and nbytes(value) >= SMALLEST
            and (value.dtype, value.shape) == (value_of(put).dtype, value_of(put).shape)
            and _is_made_for(product, node) and put.users.keys() == {node}
        ):  # fmt: skip
            return _Sum(product, index, argument(put, "values"), argument(put, "mask"))
    return None


def _index_of(put: fx.Node) -> fx.Node | None:
    """What names the rows of zeros that a value is put into; None, if it is put otherwise."""
    if op_name(put) not in PUTS or not is_zero(argument(put, 0)):
        return None
    if op_name(put) != MASKED and not argument(put, "accumulate"):
        return None  # of rows with one index the last one stays
    index = argument(put, "indices")
    rows, whole = tensor_of(argument(put, "values")), value_of(put)
    if len(index) != 1 or rows is None or value_of(index[0]).dtype not in (torch.int64, torch.int32):
        return None
    return index[0] if rows.shape == (*value_of(index[0]).shape, *whole.shape[1:]) else None


def _is_made_for(product: fx.Node, reader: fx.Node) -> bool:
    """Whether a product is in memory of its own, which one operator reads."""
    while product.users.keys() == {reader}:
        if flops(product) or adapter.written_to(product) is not None:
            return True
        if storage_of(product) is product:
            return False
        product, reader = product.all_input_nodes[0], product
    return False


def _masked(rows: fx.Node, mask: fx.Node) -> fx.Node:
    """Rows that are zero where the mask is false."""
    graph, value = rows.graph, value_of(rows)
    given = {"dtype": value.dtype, "layout": torch.strided, "device": value.device, "pin_memory": False}
    zero = graph.call_function(torch.ops.aten.full.default, ([], 0), given)
    with value.fake_mode:  # type: ignore[attr-defined]
        zero.meta["val"] = torch.zeros((), dtype=value.dtype, device=value.device)
    made = graph.call_function(torch.ops.aten.where.self, (mask, rows, zero))
    made.meta = rows.meta.copy()
    return made
