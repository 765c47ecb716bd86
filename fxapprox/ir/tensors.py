"""The values of nodes: shapes, bytes, layouts, and whose memory they lie in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from fxapprox import torch_adapter as adapter
from fxapprox.ir.arguments import argument
from fxapprox.ir.operators import is_view, op_name
from fxapprox.sizes import Size

_ATTENTION = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward")
_ON_CPU = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
# torch counts attention on the CPU as nothing
FLOPS = flop_registry | {
    getattr(torch.ops.aten, own): flop_registry[getattr(torch.ops.aten, like)]
    for own, like in zip(_ON_CPU, _ATTENTION, strict=True)
}


def tensor_of(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that stands for the node's value; None for tuples and scalars."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def value_of(node: fx.Node) -> torch.Tensor:
    """The same, of a node whose value is a tensor."""
    value = tensor_of(node)
    assert value is not None, node.name
    return value


def element_of(node: fx.Node) -> torch.Tensor | None:
    """The node's fake tensor, or the first of a tuple that begins with one (split, unbind, attention)."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], torch.Tensor):
        return value[0]
    return tensor_of(node)


def is_float(dtype: torch.dtype) -> bool:
    """Whether numbers of this type may be a little off: floating point, complex ones as well."""
    return dtype.is_floating_point or dtype.is_complex


def symbolic_shape(value: torch.Tensor) -> tuple[Size, ...]:
    """The shape, symbolic sizes as expressions."""
    return tuple(adapter.expression(size) for size in value.shape)


def nbytes_expression(value: torch.Tensor) -> Size:
    """Bytes of a dense copy, as an expression of the symbolic sizes."""
    return math.prod(symbolic_shape(value)) * value.element_size()


def numel(value: torch.Tensor) -> int:
    """Number of elements, symbolic sizes by their hints."""
    count = value.numel()
    return count if type(count) is int else math.prod(adapter.hint(size) for size in value.shape)


def nbytes(value: torch.Tensor) -> int:
    """Bytes of a dense copy, symbolic sizes by their hints."""
    return numel(value) * value.element_size()


def flops(node: fx.Node) -> int:
    """Floating point operations of a product (convolution, matrix product, attention); 0 for every other operator."""
    count = FLOPS.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return 0
    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), _value_of)  # type: ignore[misc, arg-type]
    return int(adapter.hint(count(*args, **kwargs, out_val=node.meta.get("val"))))


def _value_of(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, fx.Node) else argument


def is_fixed_on_cpu(value: torch.Tensor) -> bool:
    """Whether it is on the CPU, and none of its sizes is a symbol."""
    return value.device.type == "cpu" and has_fixed_sizes(value)


def has_fixed_sizes(value: torch.Tensor) -> bool:
    """Whether none of its sizes is a symbol."""
    return all(isinstance(size, int) for size in value.shape)


def is_dense(value: torch.Tensor) -> bool:
    """Whether every element has a place of its own and there are no gaps between them."""
    expected = 1
    for size, stride in sorted(
        ((adapter.hint(n), adapter.hint(s)) for n, s in zip(value.shape, value.stride(), strict=True)),
        key=lambda pair: (pair[1], pair[0]),
    ):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def has_gaps(value: torch.Tensor) -> bool:
    """Whether the value lies in more memory than its elements take."""
    steps = ((adapter.hint(n) - 1) * adapter.hint(s) for n, s in zip(value.shape, value.stride(), strict=True))
    return 0 < numel(value) < 1 + sum(steps)


def memory_order(value: torch.Tensor) -> tuple[int, ...]:
    """Dimensions from the one with the largest stride to the one with the smallest."""
    strides = [adapter.hint(stride) for stride in value.stride()]
    sizes = [adapter.hint(size) for size in value.shape]
    return tuple(sorted(range(value.dim()), key=lambda d: (-strides[d], sizes[d] == 1, d)))


def storage_of(node: fx.Node) -> fx.Node:
    """The node whose memory this one's value lies in: itself, unless it is a view."""
    while node.op == "call_function" and is_view(node) and isinstance(source := argument(node, 0), fx.Node):
        if op_name(node) == "getitem" and not is_view(source):
            return node  # one output of an operator with several
        node = source
    return node
