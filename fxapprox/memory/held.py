"""What the autograd graph holds between forward and backward, read off the graphs.

It holds the memory of every tensor that is saved: a piece of memory once and in full, however many views of it are
saved, and an output of the user's like any other. Not counted is what is there without the graph: parameters (any leaf
that requires a gradient), buffers and the user's inputs (arguments, globals, variables of an enclosing function).
``measure.stored_bytes`` measures the same of a real step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.tensors import has_gaps, nbytes_expression, storage_of, symbolic_shape, tensor_of
from fxapprox.sizes import Size


def held_by(saved: Iterable[fx.Node], counted: Collection[str] = ()) -> dict[fx.Node, Size]:
    """Bytes of each piece of memory that these values lie in, by the node that made it.

    Args:
        saved: values of one graph.
        counted: names of the inputs that are no parameters, buffers or inputs of the user's.
    """
    found: dict[fx.Node, Size] = {}
    for node in saved:
        base = _base_of(node)
        if base.op == "get_attr" or (base.op == "placeholder" and base.name not in counted):
            continue
        value = tensor_of(base) if tensor_of(base) is not None else tensor_of(node)
        if value is not None:
            found[base] = _memory(value)
    return found


def saved_by(forward: fx.GraphModule, num_fwd_outputs: int) -> list[fx.Node]:
    """What a forward graph returns for backward."""
    (output,) = forward.graph.find_nodes(op="output")
    values: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    return [value for value in values[num_fwd_outputs:] if isinstance(value, fx.Node)]


def positions_in(held: Iterable[fx.Node], graph: fx.Graph, count: int) -> tuple[frozenset[int], frozenset[int]]:
    """Which inputs and outputs of the Dynamo graph lie in memory that is held; the outputs are the graph's first."""
    bases = set(held)
    placed = ((node, adapter.input_position(node)) for node in graph.find_nodes(op="placeholder"))
    (output,) = graph.find_nodes(op="output")
    returned = list(zip(adapter.flat_outputs(output), adapter.output_positions(graph), strict=True))[:count]
    return (
        frozenset(at for node, at in placed if at is not None and node in bases),
        frozenset(
            at for node, at in returned if at is not None and isinstance(node, fx.Node) and _base_of(node) in bases
        ),
    )


def _base_of(node: fx.Node) -> fx.Node:
    """The node that made the memory; views that nobody has described (complex numbers as reals) lie in it too."""
    base = storage_of(node)
    while adapter.is_alias(base):
        base = storage_of(base.args[0])  # type: ignore[arg-type]
    return base


def _memory(value: torch.Tensor) -> Size:
    """Bytes from the first element to the last: what lies in gaps between them is held as well."""
    if not has_gaps(value):
        return nbytes_expression(value)
    strides = map(adapter.expression, value.stride())
    steps = ((size - 1) * stride for size, stride in zip(symbolic_shape(value), strides, strict=True))
    return (1 + sum(steps)) * value.element_size()
