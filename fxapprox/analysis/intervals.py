"""Interval analysis of the joint graph: between which numbers do the elements of a value lie?

What an operator does to an approximate operand can depend on where the operand lies: ``exp`` of something that is
never positive is bounded, a divisor of at least 1 is harmless. Operators that are not named here may give anything.
Integers that an operator picked out of a range (``argmax``, ``max_pool2d_with_indices``) need few bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import fx

from fxapprox.ir.arguments import argument
from fxapprox.ir.operators import INDICES, is_plain, is_view, op_name
from fxapprox.ir.tensors import tensor_of

INF = math.inf
AVERAGES = frozenset("aten.avg_pool1d aten.avg_pool2d aten.avg_pool3d".split())
Interval = tuple[float, float]
EVERYTHING: Interval = (-INF, INF)


def interval(node: fx.Node, known: Mapping[fx.Node, Interval]) -> Interval:
    """An interval that holds every finite element of the node's value, from those of its operands."""
    name = op_name(node)
    first, second = (_range_of(argument(node, place), known) for place in (0, 1))
    if name == "aten.full" and second is not None:
        return second
    if node.op != "call_function" or first is None:
        return EVERYTHING
    low, high = first
    if name in ("aten.sigmoid", "aten._softmax"):
        return (0.0, 1.0)
    if name in ("aten.tanh", "aten.erf", "aten.sin", "aten.cos", "aten.sign"):
        return (-1.0, 1.0)
    if name == "aten.atan":
        return (-math.pi / 2, math.pi / 2)
    if name == "aten.reciprocal" and not low <= 0 <= high:
        return (1 / high, 1 / low)
    if name == "aten.exp":
        return (0.0, math.exp(high) if high < 700 else INF)
    if name in ("aten.relu", "aten.abs", "aten.sqrt", "aten.rsqrt", "aten.square"):
        return (max(low, 0.0) if name == "aten.relu" else 0.0, max(high, 0.0) if name == "aten.relu" else INF)
    if name == "aten.clamp_min" and second is not None:
        return (max(low, second[0]), max(high, second[1]))
    if name == "aten.clamp_max" and second is not None:
        return (min(low, second[0]), min(high, second[1]))
    if name == "aten.where":
        (low, high), (lows, highs) = (
            _range_of(argument(node, side), known) or EVERYTHING for side in ("self", "other")
        )
        return (min(low, lows), max(high, highs))
    if name == "aten.neg":
        return (-high, -low)
    if name == "aten.pow" and second in ((2, 2), (2.0, 2.0)):
        return (0.0, INF)
    if name == "aten.pow" and second is not None and second[0] == second[1] and low >= 0:
        return _power(first, second[0])
    if name in ("aten.mul", "aten.div") and second is not None and is_plain(node):
        return _product(node, name, first, second)
    if name in ("aten.add", "aten.sub") and second is not None and is_plain(node):
        if name == "aten.sub" and _is_shift_by_maximum(node):
            return (-INF, 0.0)
        lows, highs = (second[0], second[1]) if name == "aten.add" else (-second[1], -second[0])
        return (low + lows, high + highs)
    if name == "aten.sum" and _is_over_exponentials(node):
        return (1.0, INF)
    if name == "aten.constant_pad_nd":
        value = argument(node, "value", 0)
        return (min(low, value), max(high, value)) if isinstance(value, (int, float)) else EVERYTHING
    if name in AVERAGES and argument(node, "divisor_override") is None:
        return (min(low, 0.0), max(high, 0.0))  # padding is averaged with the rest
    if name in ("aten.mean", "aten.amax", "aten.amin") or is_view(node) or name in (
        "aten.clone", "prims.convert_element_type", "aten._to_copy"
    ):  # fmt: skip
        return first
    return EVERYTHING


def _range_of(value: object, known: Mapping[fx.Node, Interval]) -> Interval | None:
    """The interval of an argument; None if it is no number."""
    if isinstance(value, fx.Node):
        return known.get(value, EVERYTHING)
    return (value, value) if isinstance(value, (int, float)) else None


def _power(base: Interval, exponent: float) -> Interval:
    """A power of what is never negative."""
    try:
        ends = sorted(end**exponent for end in base)
    except (OverflowError, ZeroDivisionError):
        return (0.0, INF)
    return (ends[0], ends[1])


def _product(node: fx.Node, name: str, first: Interval, second: Interval) -> Interval:
    if name == "aten.mul" and argument(node, 0) is argument(node, 1):
        return (0.0, INF)
    if name == "aten.div":
        if second[0] <= 0 <= second[1]:
            return (0.0, INF) if first[0] >= 0 and second[0] >= 0 else EVERYTHING
        second = (1 / second[1], 1 / second[0])
    ends = [a * b for a in first for b in second if not (0 in (a, b) and INF in (abs(a), abs(b)))]
    exact_zero = any(a == 0 for a in first) or any(b == 0 for b in second)
    ends += [0.0] if exact_zero or not ends else []
    return (min(ends), max(ends))


def _is_shift_by_maximum(node: fx.Node) -> bool:
    """x - amax(x) or x - logsumexp(x): never positive."""
    source, shift = argument(node, 0), argument(node, 1)
    while isinstance(shift, fx.Node) and is_view(shift) and op_name(shift) != "getitem":
        shift = argument(shift, 0)
    if not isinstance(shift, fx.Node):
        return False
    if op_name(shift) in ("aten.amax", "aten.logsumexp"):
        return argument(shift, 0) is source
    if op_name(shift) == "aten.log" and isinstance(source, fx.Node):  # log_softmax: (x - max) - log(sum(exp(x - max)))
        total = argument(shift, 0)
        inner = argument(total, 0) if op_name(total) == "aten.sum" else None
        return isinstance(inner, fx.Node) and op_name(inner) == "aten.exp" and argument(inner, 0) is source
    return False


def _is_over_exponentials(node: fx.Node) -> bool:
    """sum(exp(x - amax(x))): of every row at least one term is 1."""
    exponential = argument(node, 0)
    shifted = argument(exponential, 0) if op_name(exponential) == "aten.exp" else None
    if not isinstance(shifted, fx.Node) or op_name(shifted) != "aten.sub" or not _is_shift_by_maximum(shifted):
        return False
    maximum = argument(shifted, 1)
    while isinstance(maximum, fx.Node) and is_view(maximum):
        maximum = argument(maximum, 0)
    return isinstance(maximum, fx.Node) and op_name(maximum) == "aten.amax" and _dims(maximum) == _dims(node)


def _dims(reduction: fx.Node) -> list[int]:
    """The dimensions that a reduction reduces, counted from the first."""
    value, dims = tensor_of(argument(reduction, 0)), argument(reduction, "dim")
    rank = value.dim() if value is not None else 0
    given = [d for d in dims if isinstance(d, int)] if isinstance(dims, (list, tuple)) else []
    return sorted(d % rank for d in given) if rank and given else list(range(rank))


def span_of(node: fx.Node) -> tuple[int, int] | None:
    """The range an integer (or a sign) lies in, where its operator fixes it."""
    maker, number = (argument(node, 0), argument(node, 1)) if op_name(node) == "getitem" else (node, 0)
    name, value = op_name(maker), tensor_of(node)
    if value is None or value.dtype.is_complex:
        return None
    if name in ("aten.sign", "aten.sgn"):
        return (-1, 1)
    among, result = INDICES.get(name, ("", 0))
    count = _choices(maker, among) if among and result == number else None
    return (0, max(count - 1, 0)) if count is not None else None


def _choices(maker: fx.Node, among: str | int) -> int | None:
    """Among how many elements an operator chooses; None where that is not fixed."""
    source, given = tensor_of(argument(maker, 0)), argument(maker, among) if isinstance(among, str) else None
    if source is None:
        return None
    sizes: list[Any] = list(source.shape)
    if isinstance(among, int):
        sizes = sizes[-among:]
    elif among == "kernel_size":
        sizes = list(given)  # type: ignore[arg-type]
    elif given is not None and sizes:
        sizes = [sizes[given]] if isinstance(given, int) else [None]
    return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else None
