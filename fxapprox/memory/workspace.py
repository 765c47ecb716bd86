"""What libraries on the CPU allocate inside an operator: oneDNN, and the backward of fused attention.

oneDNN brings images into a layout of its own, unless they are channels-last; weights always. Measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import CONVOLUTION
from fxapprox.ir.arguments import argument
from fxapprox.ir.operators import op_name
from fxapprox.ir.tensors import tensor_of, value_of
from fxapprox.memory.kernels import Value
from fxapprox.sizes import Size

CONVOLUTION_BACKWARD = "aten.convolution_backward"
GEOMETRY = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


def on_cpu(node: fx.Node) -> bool:
    """Return True if what an operator reads first lies on the CPU."""
    fake = tensor_of(node.all_input_nodes[0]) if node.all_input_nodes else None
    return fake is not None and fake.device.type == "cpu"


def is_slow_alone(node: fx.Node) -> bool:
    """Whether oneDNN runs a convolution, but not one of a single image: that ATen copies for each place of a kernel."""
    return runs_in_onednn(node) and not runs_in_onednn(node, images=1)


def runs_in_onednn(node: fx.Node, images: int | None = None) -> bool:
    """Whether oneDNN runs a convolution, or its gradient, on the CPU.

    Args:
        images: how many of its images it is given; None: all.
    """
    if op_name(node) not in (CONVOLUTION, CONVOLUTION_BACKWARD) or not on_cpu(node):
        return False
    given = [argument(node, name) for name in ("input", "weight", "bias", "bias_sizes", *GEOMETRY)]
    image, weight, bias, bias_sizes, *geometry = (value_of(a) if isinstance(a, fx.Node) else a for a in given)
    rows, *rest = map(adapter.hint, image.shape)
    some = image.new_empty((rows if images is None else images, *rest))
    return adapter.runs_in_onednn(some, weight, bias, *geometry, bias_sizes)


def workspace(name: str, values: Sequence[Value], sizes: Sequence[Size], made: Value) -> Size:
    """Return the bytes that an operator needs while it runs on the CPU.

    Args:
        values: the memory that it reads, by place.
        sizes: bytes of what it reads of each.
        made: its first result, laid out as it will be.
    """
    if name == "aten._scaled_dot_product_flash_attention_for_cpu_backward":
        return sizes[0]
    if name == CONVOLUTION:
        image, weight = sizes[:2]
        return weight if made.channels_last else _larger(image + weight, made.size)
    if name == CONVOLUTION_BACKWARD:
        images = zip(values[:2], sizes, strict=False)
        return 2 * sizes[2] + sum(size for value, size in images if not value.channels_last)
    return 0


def _larger(a: Size, b: Size) -> Size:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else sympy.Max(a, b)
