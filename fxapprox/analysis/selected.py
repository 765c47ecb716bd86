"""Where is an exponential read? Of where(x > 0, x, expm1(x)) only where x is not positive, and there it is bounded.

A branch of ``where`` is read where its condition takes it, and what the branch is computed from, element by element, is
read nowhere else either, unless something else reads it. So the condition bounds the operand of an exponential,
whatever the operand is where the other branch is taken.
"""

from __future__ import annotations

import math

from torch import fx

from fxapprox.analysis.intervals import EVERYTHING, INF, Interval, interval
from fxapprox.ir.arguments import argument, arguments
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import is_plain, is_pointwise, op_name, operator_of
from fxapprox.ir.tensors import symbolic_shape, tensor_of

SCALED = ("aten.mul", "aten.div", "aten.add", "aten.sub", "aten.neg", "prims.convert_element_type")
BOUNDED_BELOW = ("aten.exp", "aten.expm1", "aten.exp2")  # cosh and sinh grow to both sides
STEPS = 6  # of arithmetic with numbers, at most, between a condition's operand and an exponential's
Region = tuple[fx.Node, Interval]  # where the elements of a value lie in an interval


def ceilings(joint: Joint) -> dict[fx.Node, float]:
    """The exponentials that are read only where their operand is bounded: a little more than it is at most there."""
    regions: dict[fx.Node, Region | None] = {}
    found: dict[fx.Node, float] = {}
    for node in reversed(joint.gm.graph.nodes):
        read = [_region_in(user, node, regions) for user in node.users]
        regions[node] = region = _joined(read)
        if region is None or op_name(node) not in BOUNDED_BELOW:
            continue
        _, high = _within(argument(node, 0), *region)
        if high < INF:
            found[node] = high + 0.01 * (1 + abs(high))  # rounding may be otherwise than in real numbers
    return found


def _region_in(user: fx.Node, node: fx.Node, regions: dict[fx.Node, Region | None]) -> Region | None:
    """Where a reader asks for the elements of a value; None: everywhere."""
    value, result = tensor_of(node), tensor_of(user)
    if value is None or result is None or symbolic_shape(value) != symbolic_shape(result):
        return None
    if op_name(user) == "aten.where":
        condition, taken, other = arguments(user)
        if node is not condition and taken is not other and (found := _taken(condition, node is taken)) is not None:
            return found
    return regions.get(user) if is_pointwise(user) or op_name(user) in SCALED else None


def _joined(regions: list[Region | None]) -> Region | None:
    """Where any of the readers asks for it."""
    bases = {region[0] if region is not None else None for region in regions}
    known = [region for region in regions if region is not None]
    if len(bases) != 1 or not known:
        return None
    lows, highs = zip(*(bounds for _, bounds in known), strict=True)
    return known[0][0], (min(lows), max(highs))


def _taken(condition: object, side: bool) -> Region | None:
    """Where a comparison with a number is true, or false."""
    if not isinstance(condition, fx.Node):
        return None
    if op_name(condition) in ("aten.logical_not", "aten.bitwise_not"):
        return _taken(argument(condition, 0), not side)
    comparison = operator_of(condition).compares
    if comparison is None:
        return None
    operand, number = arguments(condition)
    if not isinstance(operand, fx.Node) or not isinstance(number, (int, float)):
        return None
    above = comparison.above == side
    return _of_its_base(operand, (number, INF) if above else (-INF, number))


def _of_its_base(node: fx.Node, bounds: Interval) -> Region:
    """The same region, told of what the node is a multiple of."""
    for _ in range(STEPS):
        number = argument(node, 1)
        source, name = argument(node, 0), op_name(node)
        if name not in ("aten.mul", "aten.div") or not is_plain(node) or not isinstance(source, fx.Node):
            break
        if not isinstance(number, (int, float)) or not 0 < number < math.inf:
            break
        factor = 1 / number if name == "aten.mul" else number
        node, bounds = source, (bounds[0] * factor, bounds[1] * factor)
    return node, bounds


def _within(node: fx.Node, base: fx.Node, bounds: Interval, steps: int = STEPS) -> Interval:
    """Where the node lies if the base lies there, of which it is made by arithmetic with numbers."""
    if node is base:
        return bounds
    sources = node.all_input_nodes
    if steps == 0 or len(sources) != 1 or op_name(node) not in SCALED:
        return EVERYTHING
    return interval(node, {sources[0]: _within(sources[0], base, bounds, steps - 1)})
