"""Asks for decoded images of backward's convolutions in channels-last memory, where forward's convolutions have theirs.

Inductor lays out images channels-last in graphs that have a convolution; a backward graph has only the gradients of
some, whose operands it makes in the order in which they were traced. Saved images of plain torch.compile come
channels-last from forward, and so does what is made from them element by element; decoded ones do not, and oneDNN
copies them, and the gradients beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.arguments import arguments
from fxapprox.ir.tensors import tensor_of


def lay_out(backward: fx.GraphModule) -> tuple[str, ...]:
    """Puts what the gradients of convolutions are made from into channels-last memory, where the image is decoded.

    Requires: a backward graph whose forward graph Inductor lays out channels-last.
    Ensures: no value changes; images whose channels or pixels are symbolic are read as they come. So is a gradient that
        comes from outside the graph, and the image beside it: Inductor makes their layouts one.
    Changes numerics: no, but for the order in which a library adds.

    Returns: the names of the images and gradients.
    """
    found = []
    decoded = _decoded(backward.graph)
    for node in backward.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default):
        gradient, image, *_ = arguments(node)
        if image not in decoded or gradient.op == "placeholder":
            continue
        for operand in (gradient, image):
            like = _laid_out(operand)
            if like is None:
                continue
            with backward.graph.inserting_before(node):
                # in memory once: others read it there too, where Inductor would compute it for each layout
                kept = backward.graph.call_function(adapter.IN_MEMORY, (operand,))
                ordered = backward.graph.call_function(adapter.IN_ORDER, (kept, list(like.stride())))
            kept.meta, ordered.meta = operand.meta.copy(), {**operand.meta, "val": like}
            node.replace_input_with(operand, ordered)
            found.append(operand.name)
    return tuple(found)


def _decoded(graph: fx.Graph) -> set[fx.Node]:
    """What is computed from codes. What is saved exactly comes channels-last from forward."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if adapter.is_part(node.name) if node.op == "placeholder" else not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _laid_out(operand: fx.Node) -> Tensor | None:
    """The fake tensor of the operand in channels-last memory; None where it is read as it comes."""
    value = tensor_of(operand)
    if value is None or value.dim() != 4:
        return None
    fixed = all(isinstance(size, int) for size in value.shape[1:])
    return torch.empty_like(value, memory_format=torch.channels_last) if fixed else None
