"""What libraries on the CPU allocate inside an operator: oneDNN, and the backward of fused attention.

oneDNN brings images into a layout of its own, unless they are channels-last; weights always. Measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import sympy
from torch import fx

from fxapprox.analysis.layouts import CONVOLUTION
from fxapprox.ir.arguments import argument
from fxapprox.ir.operators import op_name
from fxapprox.ir.tensors import tensor_of
from fxapprox.memory.kernels import Value
from fxapprox.sizes import Size

CONVOLUTION_BACKWARD = "aten.convolution_backward"
LEAST_ALONE = 20480  # elements, as in ATen's `use_mkldnn`


def on_cpu(node: fx.Node) -> bool:
    """Return True if what an operator reads first lies on the CPU."""
    fake = tensor_of(node.all_input_nodes[0]) if node.all_input_nodes else None
    return fake is not None and fake.device.type == "cpu"


def is_slow_alone(node: fx.Node) -> bool:
    """Whether a convolution of one image is not oneDNN's, but one that copies it for every place of the kernel.

    ATen's rule: the first four sizes, multiplied.
    """
    name = op_name(node)
    if name not in (CONVOLUTION, CONVOLUTION_BACKWARD) or not on_cpu(node):
        return False
    image = tensor_of(argument(node, "input"))
    return image is not None and math.prod(image.shape[1:4]) <= LEAST_ALONE


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
