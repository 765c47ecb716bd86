"""Saves inputs as they are: without this, Inductor saves the copy in another layout that it makes for convolutions.

Where a convolution reads a graph input (a weight, an image), Inductor turns the input into channels-last memory and
from then on takes the copy for the input, also where forward returns it to be saved for backward. So every weight is
stored twice. Here forward's operators read a saved input through a view (``as_strided``, of its own sizes and
strides), and only what is made from the view changes its layout; backward makes its own copy, for as long as it needs.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import op_name
from fxapprox.ir.tensors import is_dense, memory_order, tensor_of

IMAGE_DIMS = (4, 5)  # what has a channels-last layout


def pin_inputs(forward: fx.GraphModule, *, num_fwd_outputs: int) -> tuple[str, ...]:
    """Lets forward read its saved inputs through views.

    Requires: a forward graph as ``partition`` makes it.
    Ensures: the saved inputs are returned themselves; inputs with symbolic sizes and inputs that forward changes in
        place are left alone.
    Changes numerics: no.

    Returns: the names of the inputs that got a view.
    """
    output = next(iter(forward.graph.find_nodes(op="output")))
    saved = set(output.args[0][num_fwd_outputs:])  # type: ignore[index]
    pinned = [node for node in forward.graph.find_nodes(op="placeholder") if node in saved and _can_be_pinned(node)]
    mode = adapter.fake_mode_of(forward)
    if mode is None:
        return ()
    for node in pinned:
        value = tensor_of(node)
        assert value is not None
        readers = [user for user in node.users if user is not output]
        with forward.graph.inserting_before(min(readers)):
            view = forward.graph.call_function(
                torch.ops.aten.as_strided.default, (node, list(value.shape), list(value.stride()))
            )
        adapter.rename(view, f"{node.name}_pinned")
        with mode:
            view.meta["val"] = value.as_strided(value.shape, value.stride())
        for reader in readers:
            reader.replace_input_with(node, view)
    return tuple(node.name for node in pinned)


def copied_inputs(gm: fx.GraphModule, saved: Collection[object]) -> tuple[str, ...]:
    """Names of the saved inputs of which Inductor stores a copy in channels-last memory, if it is given this graph.

    Its rule: where it lays images out channels-last, every four-dimensional input that a convolution is made from
    takes that layout, unless it has it already (sizes of 1 have no place in a layout), or is read through a view of
    given strides. (``find_nodes_prefer_channels_last`` in torch/_inductor/graph.py)

    Args:
        gm: a joint graph, or a forward graph.
        saved: what forward saves for backward.
    """
    if not adapter.prefers_channels_last(gm):
        return ()
    feeding: set[fx.Node] = set()
    stack = [n for n in gm.graph.nodes if op_name(n) == "aten.convolution"]
    while stack:
        node = stack.pop()
        if node not in feeding:
            feeding.add(node)
            stack += () if op_name(node) == "aten.as_strided" else node.all_input_nodes
    inputs = gm.graph.find_nodes(op="placeholder")
    return tuple(n.name for n in inputs if n in feeding and n in saved and _would_be_copied(n))


def _would_be_copied(node: fx.Node) -> bool:
    value = tensor_of(node)
    if value is None or value.dim() != 4 or not is_dense(value):
        return False
    sizes = [adapter.hint(size) for size in value.shape]
    return [d for d in memory_order(value) if sizes[d] > 1] != [d for d in (0, 2, 3, 1) if sizes[d] > 1]


def _can_be_pinned(node: fx.Node) -> bool:
    """Whether the input has a channels-last layout, fixed sizes, and readers that all leave it as it is."""
    value = tensor_of(node)
    readers = [user for user in node.users if user.op == "call_function"]
    return (
        value is not None
        and value.dim() in IMAGE_DIMS
        and all(isinstance(size, int) for size in (*value.shape, *value.stride()))
        and bool(readers)
        and not any(adapter.mutates(reader) for reader in readers)
    )
