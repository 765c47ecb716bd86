"""Interval analysis of the joint graph: between which numbers do the elements of a value lie?

What an operator does to an approximate operand can depend on where the operand lies: ``exp`` of something that is
never positive is bounded, a divisor of at least 1 is harmless. Operators that are not named here may give anything.
Integers that an operator picked out of a range (``argmax``, ``max_pool2d_with_indices``) need few bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import fx

from fxapprox.graph import tensor_of
from fxapprox.operators import INDEX_MAKERS, is_view, op_name

INF = math.inf
Interval = tuple[float, float]
EVERYTHING: Interval = (-INF, INF)


def interval(node: fx.Node, known: Mapping[fx.Node, Interval]) -> Interval:
    """An interval that holds every finite element of the node's value, from those of its operands."""
    name = op_name(node)
    args = [known.get(a, EVERYTHING) if isinstance(a, fx.Node) else (a, a) if isinstance(a, (int, float)) else None
            for a in node.args]  # fmt: skip
    first = args[0] if args else None
    second = args[1] if len(args) > 1 else None
    if name == "aten.full" and second is not None:
        return second
    if node.op != "call_function" or first is None:
        return EVERYTHING
    low, high = first
    if name in ("aten.sigmoid", "aten._softmax"):
        return (0.0, 1.0)
    if name in ("aten.tanh", "aten.erf", "aten.sin", "aten.cos", "aten.sign"):
        return (-1.0, 1.0)
    if name == "aten.exp":
        return (0.0, math.exp(high) if high < 700 else INF)
    if name in ("aten.relu", "aten.abs", "aten.sqrt", "aten.rsqrt", "aten.square"):
        return (max(low, 0.0) if name == "aten.relu" else 0.0, max(high, 0.0) if name == "aten.relu" else INF)
    if name == "aten.clamp_min" and second is not None:
        return (max(low, second[0]), max(high, second[1]))
    if name == "aten.clamp_max" and second is not None:
        return (min(low, second[0]), min(high, second[1]))
    if name == "aten.where":
        sides = [side or EVERYTHING for side in args[1:]]
        return (min(low for low, _ in sides), max(high for _, high in sides))
    if name == "aten.neg":
        return (-high, -low)
    if name == "aten.pow" and second in ((2, 2), (2.0, 2.0)):
        return (0.0, INF)
    if name in ("aten.mul", "aten.div") and second is not None and not node.kwargs:
        return _product(node, name, first, second)
    if name in ("aten.add", "aten.sub") and second is not None and not node.kwargs.get("alpha"):
        if name == "aten.sub" and _is_shift_by_maximum(node):
            return (-INF, 0.0)
        lows, highs = (second[0], second[1]) if name == "aten.add" else (-second[1], -second[0])
        return (low + lows, high + highs)
    if name == "aten.sum" and _is_over_exponentials(node):
        return (1.0, INF)
    if name in ("aten.mean", "aten.amax", "aten.amin") or is_view(node) or name in (
        "aten.clone", "prims.convert_element_type", "aten._to_copy"
    ):  # fmt: skip
        return first
    return EVERYTHING


def _product(node: fx.Node, name: str, first: Interval, second: Interval) -> Interval:
    if name == "aten.mul" and node.args[0] is node.args[1]:
        return (0.0, INF)
    if name == "aten.div":
        if not (second[0] == second[1] and second[0] != 0):
            return (0.0, INF) if first[0] >= 0 and second[0] >= 0 else EVERYTHING
        second = (1 / second[0], 1 / second[0])
    ends = [a * b for a in first for b in second if not (0 in (a, b) and INF in (abs(a), abs(b)))]
    exact_zero = any(a == 0 for a in first) or any(b == 0 for b in second)
    ends += [0.0] if exact_zero or not ends else []
    return (min(ends), max(ends))


def _is_shift_by_maximum(node: fx.Node) -> bool:
    """x - amax(x) or x - logsumexp(x): never positive."""
    source, shift = node.args[0], node.args[1]
    while isinstance(shift, fx.Node) and is_view(shift) and op_name(shift) != "getitem":
        shift = shift.args[0]
    if not isinstance(shift, fx.Node):
        return False
    if op_name(shift) in ("aten.amax", "aten.logsumexp"):
        return shift.args[0] is source
    if op_name(shift) == "aten.log" and isinstance(source, fx.Node):  # log_softmax: (x - max) - log(sum(exp(x - max)))
        total = shift.args[0]
        inner = total.args[0] if isinstance(total, fx.Node) and op_name(total) == "aten.sum" else None
        return isinstance(inner, fx.Node) and op_name(inner) == "aten.exp" and inner.args[0] is source
    return False


def _is_over_exponentials(node: fx.Node) -> bool:
    """sum(exp(x - amax(x))): of every row at least one term is 1."""
    exponential = node.args[0]
    shifted = exponential.args[0] if isinstance(exponential, fx.Node) and op_name(exponential) == "aten.exp" else None
    if not isinstance(shifted, fx.Node) or op_name(shifted) != "aten.sub" or not _is_shift_by_maximum(shifted):
        return False
    maximum = shifted.args[1]
    while isinstance(maximum, fx.Node) and is_view(maximum):
        maximum = maximum.args[0]
    return isinstance(maximum, fx.Node) and op_name(maximum) == "aten.amax" and _dims(maximum) == _dims(node)


def _dims(reduction: fx.Node) -> list[int]:
    """The dimensions that a reduction reduces, counted from the first."""
    source, dims = reduction.args[0], reduction.args[1] if len(reduction.args) > 1 else []
    value = tensor_of(source) if isinstance(source, fx.Node) else None
    rank = value.dim() if value is not None else 0
    given = [d for d in dims if isinstance(d, int)] if isinstance(dims, (list, tuple)) else []
    return sorted(d % rank for d in given) if rank and given else list(range(rank))


def span_of(node: fx.Node) -> tuple[int, int] | None:
    """The range an integer (or a sign) lies in, where its operator fixes it."""
    maker, position = node, 0
    if op_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
        maker, position = node.args[0], node.args[1]
    name = op_name(maker)
    if name not in INDEX_MAKERS or not maker.args or not isinstance(maker.args[0], fx.Node):
        return None
    if name in ("aten.sign", "aten.sgn"):
        return (-1, 1)
    source = tensor_of(maker.args[0])
    if source is None or (name not in ("aten.argmax", "aten.argmin") and position != 1):
        return None
    if name == "prims._low_memory_max_pool_with_offsets":
        kernel = maker.args[1]
        if not isinstance(kernel, (list, tuple)):
            return None
        window = [size for size in kernel if isinstance(size, int)]
        return (0, math.prod(window) - 1) if len(window) == len(kernel) else None
    sizes = list(source.shape)
    if name == "aten.max_pool2d_with_indices":
        sizes = sizes[-2:]
    else:
        dim = {"aten.topk": 2}.get(name, 1)
        axis = maker.args[dim] if len(maker.args) > dim else (None if name in ("aten.argmax", "aten.argmin") else -1)
        if axis is not None and sizes:
            sizes = [sizes[axis]] if isinstance(axis, int) else [1]
    static = [size for size in sizes if isinstance(size, int)]
    return (0, max(math.prod(static) - 1, 0)) if len(static) == len(sizes) else None
