"""Interval analysis of the joint graph: between which numbers do the elements of a value lie?

What an operator does to an approximate operand can depend on where the operand lies: ``exp`` of something that is
never positive is bounded, a divisor of at least 1 is harmless. Operators that are not named here may give anything.
Integers that an operator picked out of a range (``argmax``, ``max_pool2d_with_indices``) need few bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from fxapprox.ir.arguments import argument
from fxapprox.ir.operators import behind_views, is_plain, is_view, op_name, operator_of
from fxapprox.ir.tensors import tensor_of

INF = math.inf
Interval = tuple[float, float]
EVERYTHING: Interval = (-INF, INF)
Operands = tuple[Interval, Interval | None, Interval | None]  # of the first three arguments; None: no number
Rule = Callable[[fx.Node, Operands], Interval | None]  # None: it may be anything
RULES: dict[str, Rule] = {}


def interval(node: fx.Node, known: Mapping[fx.Node, Interval]) -> Interval:
    """An interval that holds every finite element of the node's value, from those of its operands."""
    first, second, third = (_range_of(argument(node, place), known) for place in range(3))
    if op_name(node) == "aten.full":
        return second or EVERYTHING
    rule = RULES.get(op_name(node), _same if is_view(node) else None)
    if rule is None or first is None:
        return EVERYTHING
    return rule(node, (first, second, third)) or EVERYTHING


def _range_of(value: object, known: Mapping[fx.Node, Interval]) -> Interval | None:
    """The interval of an argument; None if it is no number."""
    if isinstance(value, fx.Node):
        return known.get(value, EVERYTHING)
    return (value, value) if isinstance(value, (int, float)) else None


# --- one operator ----------------------------------------------------------------------------------


def _rule(names: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of operators."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return register


def _always(names: str, low: float, high: float) -> None:
    _rule(names)(lambda *_: (low, high))


_always("aten.sigmoid aten._softmax", 0, 1)
_always("aten.tanh aten.erf aten.sin aten.cos aten.sign", -1, 1)
_always("aten.atan", -math.pi / 2, math.pi / 2)
_always("aten.abs aten.sqrt aten.rsqrt aten.square", 0, INF)


@_rule("aten.mean aten.amax aten.amin aten.clone aten._to_copy prims.convert_element_type")
def _same(_: fx.Node, operands: Operands) -> Interval:
    return operands[0]


@_rule("aten.exp")
def _exp(_: fx.Node, operands: Operands) -> Interval:
    high = operands[0][1]
    return (0, math.exp(high) if high < 700 else INF)


@_rule("aten.relu")
def _relu(_: fx.Node, operands: Operands) -> Interval:
    low, high = operands[0]
    return (max(low, 0), max(high, 0))


@_rule("aten.neg")
def _neg(_: fx.Node, operands: Operands) -> Interval:
    low, high = operands[0]
    return (-high, -low)


@_rule("aten.reciprocal")
def _reciprocal(_: fx.Node, operands: Operands) -> Interval | None:
    low, high = operands[0]
    return None if low <= 0 <= high else (1 / high, 1 / low)


@_rule("aten.clamp_min")
def _clamp_min(_: fx.Node, operands: Operands) -> Interval | None:
    (low, high), limit, _third = operands
    return None if limit is None else (max(low, limit[0]), max(high, limit[1]))


@_rule("aten.clamp_max")
def _clamp_max(_: fx.Node, operands: Operands) -> Interval | None:
    (low, high), limit, _third = operands
    return None if limit is None else (min(low, limit[0]), min(high, limit[1]))


@_rule("aten.where")
def _where(_: fx.Node, operands: Operands) -> Interval:
    (low, high), (lows, highs) = (side or EVERYTHING for side in operands[1:])
    return (min(low, lows), max(high, highs))


@_rule("aten.pow")
def _pow(_: fx.Node, operands: Operands) -> Interval | None:
    base, exponent, _third = operands
    if exponent == (2, 2):
        return (0, INF)
    if exponent is None or exponent[0] != exponent[1] or base[0] < 0:
        return None
    try:
        low, high = sorted(end ** exponent[0] for end in base)
    except (OverflowError, ZeroDivisionError):
        return (0, INF)
    return (low, high)


@_rule("aten.add")
def _add(node: fx.Node, operands: Operands) -> Interval | None:
    (low, high), other, _third = operands
    return (low + other[0], high + other[1]) if other is not None and is_plain(node) else None


@_rule("aten.sub")
def _sub(node: fx.Node, operands: Operands) -> Interval | None:
    (low, high), other, _third = operands
    if other is None or not is_plain(node):
        return None
    return (-INF, 0) if _is_shift_by_maximum(node) else (low - other[1], high - other[0])


@_rule("aten.mul")
def _mul(node: fx.Node, operands: Operands) -> Interval | None:
    first, second, _third = operands
    if second is None:
        return None
    return (0, INF) if argument(node, 0) is argument(node, 1) else _product(first, second)


@_rule("aten.div")
def _div(node: fx.Node, operands: Operands) -> Interval | None:
    first, divisor, _third = operands
    if divisor is None or not is_plain(node):
        return None
    if divisor[0] <= 0 <= divisor[1]:
        return (0, INF) if first[0] >= 0 and divisor[0] >= 0 else None
    return _product(first, (1 / divisor[1], 1 / divisor[0]))


def _product(first: Interval, second: Interval) -> Interval:
    ends = [a * b for a in first for b in second if not (0 in (a, b) and INF in (abs(a), abs(b)))]
    ends += [0.0] if 0 in (*first, *second) or not ends else []
    return (min(ends), max(ends))


@_rule("aten.sum")
def _sum(node: fx.Node, _: Operands) -> Interval | None:
    return (1, INF) if _is_over_exponentials(node) else None


@_rule("aten.constant_pad_nd")
def _pad(node: fx.Node, operands: Operands) -> Interval | None:
    (low, high), value = operands[0], argument(node, "value", 0)
    return (min(low, value), max(high, value)) if isinstance(value, (int, float)) else None


@_rule("aten.avg_pool1d aten.avg_pool2d aten.avg_pool3d")
def _average(node: fx.Node, operands: Operands) -> Interval | None:
    low, high = operands[0]  # padding is averaged with the rest
    return (min(low, 0), max(high, 0)) if argument(node, "divisor_override") is None else None


# --- shapes of a softmax ------------------------------------------------------------------------------


def _is_shift_by_maximum(node: fx.Node) -> bool:
    """x - amax(x) or x - logsumexp(x): never positive."""
    source, shift = argument(node, 0), argument(node, 1)
    if not isinstance(shift, fx.Node):
        return False
    shift = behind_views(shift)
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
    maximum = behind_views(argument(shifted, 1))
    return op_name(maximum) == "aten.amax" and _dims(maximum) == _dims(node)


def _dims(reduction: fx.Node) -> list[int]:
    """The dimensions that a reduction reduces, counted from the first."""
    value, dims = tensor_of(argument(reduction, 0)), argument(reduction, "dim")
    rank = value.dim() if value is not None else 0
    given = [d for d in dims if isinstance(d, int)] if isinstance(dims, (list, tuple)) else []
    return sorted(d % rank for d in given) if rank and given else list(range(rank))


# --- integers ----------------------------------------------------------------------------------------


def span_of(node: fx.Node) -> tuple[int, int] | None:
    """The range an integer (or a sign) lies in, where its operator fixes it."""
    maker, number = (argument(node, 0), argument(node, 1)) if op_name(node) == "getitem" else (node, 0)
    name, value = op_name(maker), tensor_of(node)
    if value is None or value.dtype.is_complex:
        return None
    if name in ("aten.sign", "aten.sgn"):
        return (-1, 1)
    among, result = operator_of(maker).indices or ("", 0)
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
