"""Which values of a graph are images that Inductor lays out channels-last, whatever their strides in the trace say.

It does so with what convolutions read and make, and loops over that take over its order. Four dimensions alone make no
image: those of attention are made by products, which write rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.arguments import argument
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import is_view, kind_of, op_name
from fxapprox.ir.tensors import element_of, flops, is_dense, memory_order, symbolic_shape, tensor_of
from fxapprox.sizes import Size

CONVOLUTION, BACKWARD = "aten.convolution", "aten.convolution_backward"


def channels_last_images(forward: fx.GraphModule) -> frozenset[str]:
    """Names of the values that will be images in channels-last memory.

    What is computed from an image is one, too, until a product or a permutation; through views of other shapes it is
    followed, as GroupNorm's, but they are none themselves.
    """
    return images_of(forward.graph, ()) if adapter.prefers_channels_last(forward) else frozenset()


def images_of(graph: fx.Graph, saved: Collection[str]) -> frozenset[str]:
    """Names of the images of a graph in which they are laid out so; ``saved``: of those that it takes."""
    shapes: dict[fx.Node, tuple[Size, ...]] = {}
    for node in graph.nodes:
        taken = node.op == "placeholder" and node.name in saved
        shape = _shape(tensor_of(node)) if taken else _image_shape(node, shapes)
        if shape is not None:
            shapes[node] = shape
    return frozenset(node.name for node, shape in shapes.items() if _shape(tensor_of(node)) == shape)


def is_image(value: torch.Tensor) -> bool:
    """Whether it makes a difference how the tensor is laid out."""
    return value.dim() == 4 and adapter.hint(value.shape[1]) > 1 and math.prod(map(adapter.hint, value.shape[2:])) > 1


def is_channels_last(value: torch.Tensor) -> bool:
    """Whether the tensor is an image that lies so in the trace; sizes by their hints, which guard nothing."""
    if not (is_image(value) and is_dense(value)):
        return False
    dims = [d for d in (0, 2, 3, 1) if adapter.hint(value.shape[d]) > 1]
    return [d for d in memory_order(value) if d in dims] == dims


def _image_shape(node: fx.Node, known: Mapping[fx.Node, tuple[Size, ...]]) -> tuple[Size, ...] | None:
    """The shape of the image whose elements a value has; None if it comes from none."""
    value = element_of(node)
    if value is None:
        return None
    own = _shape(value) if value.dim() == 4 else None
    source = argument(node, 0)
    gradient = isinstance(source, fx.Node) and op_name(source) == BACKWARD and argument(node, 1) == 0
    if op_name(node) == CONVOLUTION or gradient or is_channels_last(value):
        return own
    sources = [source for source in node.all_input_nodes if source in known]
    if not sources or flops(node) or kind_of(node) is Kind.PERMUTATION:
        return None
    if is_view(node):
        return own if kind_of(node) is Kind.PART else known[sources[0]]
    alike = [known[source] for source in sources if _shape(element_of(source)) == _shape(value)]
    return alike[0] if alike else own


def _shape(value: torch.Tensor | None) -> tuple[Size, ...] | None:
    return symbolic_shape(value) if value is not None else None
