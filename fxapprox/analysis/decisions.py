"""Which decisions does backward read, and from what can they come back?

A mask, an index or a sign that forward took from a float is kept without loss. Some need no bytes of their own: where
z > threshold, or max(z, 0), and z is affine per channel in a value that is stored anyway, the code of that value can
carry the decision (``Affine``). A clamp of an approximate value takes its side from the mask that backward reads
(``Clamp``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TypeVar

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.facts import Facts
from fxapprox.analysis.normalization import statistics_of
from fxapprox.ir.arguments import argument, arguments
from fxapprox.ir.joint import Joint
from fxapprox.ir.operator_table import Comparison, Kind
from fxapprox.ir.operators import is_cheap, is_plain, kind_of, op_name, operator_of
from fxapprox.ir.records import Affine, Clamp
from fxapprox.ir.tensors import symbolic_shape, tensor_of
from fxapprox.sizes import Size

_Size = TypeVar("_Size", int, Size)

CLAMPS = {"aten.clamp_min": True, "aten.clamp_max": False}  # whether what lies above the limit passes
JOINED = ("aten.bitwise_or", "aten.bitwise_and", "aten.logical_or", "aten.logical_and", "aten.__or__", "aten.__and__")
SMALL = 8  # times smaller than the value: a coefficient of each channel


def predicates_by_operand(joint: Joint, facts: Facts) -> dict[fx.Node, list[str]]:
    """Per forward node: names of the decisions on it that backward's own operators read."""
    found: dict[fx.Node, list[str]] = {}
    for node in facts.ops:
        if node in facts.decisions and any(user in joint.backward for user in node.users):
            for source in node.all_input_nodes:
                found.setdefault(source, []).append(node.name)
    return found


# --- decisions that a code carries -----------------------------------------------------------------


def embeddings(joint: Joint, facts: Facts, clamps: Collection[fx.Node]) -> dict[fx.Node, Affine]:
    """How codes can carry decisions: see ``Affine``; what is a clamp, with a decision of its own, is left out."""
    read = _read_by_backward(joint)
    found = ((node, _embedding(node, facts, read)) for node in facts.ops if node not in clamps)
    return {node: affine for node, affine in found if affine is not None}


def _embedding(node: fx.Node, facts: Facts, read: set[fx.Node]) -> Affine | None:
    """How one code can carry this decision together with a value that backward needs anyway.

    The decision is ``z > threshold`` (or its negation, or the rectifier itself) with z affine per channel in x.
    """
    views: list[fx.Node] = []
    if rectified(node) is not None:
        rectifier, threshold, upper, ties = node, 0.0, True, None
    elif (compared := _compared(node)) is not None:
        operand, threshold, (upper, ties) = compared
        rectifier = _behind_reshapes(operand, views)
    else:
        return None
    z = rectifier
    if threshold == 0 and (inner := rectified(rectifier)) is not None and not ties:
        z = inner
    whole = z
    chain, steps = _affine_chain(_behind_reshapes(z, views), facts)
    if any(n in facts.checkpointed for n in (node, rectifier, *chain)):
        return None  # nothing inside a checkpointed region is stored
    inside = {*chain, *views, rectifier, node}
    needed = any(user in read for n in (*chain, *views) for user in n.users if user not in inside)
    if not needed and whole is not rectifier:
        return Affine(rectifier.name, (), 0.0, upper, ties_above=ties)  # only max(z, 0) is needed: the zero codec
    root = chain[-1]
    if root in facts.free or root not in facts.depends:
        return None
    mean, rstd = statistics_of(root, steps)
    named = ((name, c.name if isinstance(c, fx.Node) else c) for name, c in reversed(steps))
    coefficients = [tensor_of(c) for _, c in steps if isinstance(c, fx.Node)]
    channel = _together([symbolic_shape(c) for c in coefficients if c is not None]) or None
    return Affine(root.name, tuple(named), threshold, upper, mean, rstd, channel, ties)


def _behind_reshapes(node: fx.Node, views: list[fx.Node]) -> fx.Node:
    """The value of which the node is a reshape, in the same order; the reshapes are added to ``views``."""
    while kind_of(node) is Kind.IN_ORDER:
        views.append(node)
        node = argument(node, 0)
    return node


def rectified(node: fx.Node) -> fx.Node | None:
    """z, if the node is max(z, 0)."""
    name = op_name(node)
    if name == "aten.relu" or (name == "aten.clamp_min" and argument(node, "min") == 0):
        return argument(node, "self")
    return None


def _compared(node: fx.Node) -> tuple[fx.Node, float, Comparison] | None:
    """(z, a number, how the node compares them), if it does."""
    if (comparison := operator_of(node).compares) is None:
        return None
    z, number = arguments(node)
    return (z, float(number), comparison) if isinstance(z, fx.Node) and isinstance(number, (int, float)) else None


def _read_mask(z: fx.Node, number: float, joint: Joint, *, ties_above: bool = True) -> tuple[fx.Node, bool] | None:
    """(a comparison of z with the number that backward reads as a mask, whether it is true of what lies above)."""
    for user in z.users:
        compared = _compared(user)
        if compared is None or compared[:2] != (z, number) or (compared[2].ties_above and not ties_above):
            continue
        if user not in joint.backward and _is_read_as_mask(user, joint):
            return user, compared[2].above
    return None


def _affine_chain(z: fx.Node, facts: Facts) -> tuple[list[fx.Node], list[tuple]]:
    """z and the values it is an affine function of, with the steps from z back to the last of them.

    It ends before the coefficients together have nearly as many elements as z: those of rows times those of columns.

    Under autocast z is such a value rounded to fewer bits. Rounding is monotone and keeps zero, so the sides are those
    of the wide value, but for what is rounded to the threshold; the decision itself is forward's own.
    """
    chain, steps = [z], []
    if (wide := _rounded(z)) is not None:
        chain.append(wide)
    while True:
        step = _affine_step(chain[-1], facts)
        if step is None or not _are_small([c for _, c in (*steps, step[1:])], z, facts):
            return chain, steps
        steps.append(step[1:])
        chain.append(step[0])


def _are_small(coefficients: Sequence[object], z: fx.Node, facts: Facts) -> bool:
    """Whether the coefficients together are one for each channel of z."""
    tensors = [value for c in coefficients if isinstance(c, fx.Node) and (value := tensor_of(c)) is not None]
    shapes = [tuple(map(adapter.hint, value.shape)) for value in tensors]
    return math.prod(_together(shapes)) * SMALL <= facts.sizes[z] or not shapes


def _together(shapes: Sequence[tuple[_Size, ...]]) -> tuple[_Size, ...]:
    """The shape that tensors of these shapes are broadcast to."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))  # type: ignore[misc]


def _rounded(node: fx.Node) -> fx.Node | None:
    """The value of a wider floating point type that this one is, rounded; None if it is none."""
    source = argument(node, 0) if kind_of(node) is Kind.CAST else None
    value, wide = tensor_of(node), tensor_of(source) if isinstance(source, fx.Node) else None
    if value is None or wide is None or not value.is_floating_point() or not wide.is_floating_point():
        return None
    return source if wide.dtype.itemsize > value.dtype.itemsize else None  # type: ignore[return-value]


def _affine_step(node: fx.Node, facts: Facts) -> tuple | None:
    """(operand, operator, coefficient) if the node is operand op coefficient, the coefficient one per channel."""
    name = facts.ops[node].removeprefix("aten.")
    if node.op != "call_function" or name not in ("add", "sub", "mul", "div", "neg") or not is_plain(node):
        return None
    value = tensor_of(node)
    if value is None or node in facts.free or not facts.roots[node]:
        return None
    size = facts.sizes[node]
    large = [a for a in arguments(node) if isinstance(a, fx.Node) and facts.sizes.get(a) == size
             and a not in facts.free and facts.roots[a]]  # fmt: skip
    operand = tensor_of(large[0]) if len(large) == 1 else None
    if operand is None or symbolic_shape(operand) != symbolic_shape(value) or not operand.is_floating_point():
        return None
    if torch.promote_types(operand.dtype, value.dtype) != value.dtype:
        return None  # under autocast a normalization takes bfloat16 and gives float32, not the other way round
    if name == "neg":
        return large[0], "neg", 0.0
    position = arguments(node).index(large[0])
    other = argument(node, 1 - position)
    if isinstance(other, fx.Node):
        small = tensor_of(other)
        if small is None or small.dim() > value.dim() or facts.sizes[other] * SMALL > size:
            return None
    if position == 1 and name == "div":
        return None
    return large[0], "rsub" if name == "sub" and position == 1 else name, other


def _read_by_backward(joint: Joint) -> set[fx.Node]:
    """Every node of backward, and every one that backward reads, itself or through cheap operators."""
    read = set(joint.backward)
    for node in reversed(joint.gm.graph.nodes):
        if node not in read and is_cheap(node) and any(user in read for user in node.users):
            read.add(node)
    return read


# --- clamps ----------------------------------------------------------------------------------------


def clamps_of(joint: Joint, facts: Facts) -> dict[fx.Node, Clamp]:
    """The clamps that can be run again on approximate operands: see ``Clamp``."""
    found = ((node, _clamp(node, joint)) for node, name in facts.ops.items() if name in CLAMPS)
    rectifiers = ((node, _rectifier(node, joint)) for node in facts.checkpointed)
    return {node: clamp for node, clamp in (*rectifiers, *found) if clamp is not None}


def _rectifier(node: fx.Node, joint: Joint) -> Clamp | None:
    """How a checkpointed rectifier can be run again: by what backward asks of its result."""
    operand = rectified(node)
    mask = _read_mask(node, 0, joint, ties_above=False)
    return Clamp(operand.name, mask[0].name, mask[1], 0.0) if operand is not None and mask is not None else None


def _clamp(node: fx.Node, joint: Joint) -> Clamp | None:
    """How a clamp can be run again from an approximate operand, if backward reads its decision.

    Backward of hardswish and hardsigmoid asks where y <= -3 and y < 3; forward clamps y + 3 to 0 and 6. Both decide
    alike, to the last bit: rounding y + 3 is monotone, and whole numbers are not rounded.
    """
    operand, limit = argument(node, 0), argument(node, 1)
    if not isinstance(operand, fx.Node) or not _is_whole(limit):
        return None
    y, threshold = operand, limit
    while isinstance(y, fx.Node) and _is_whole(threshold):
        if (mask := _read_mask(y, threshold, joint)) is not None:
            return Clamp(operand.name, mask[0].name, mask[1] == CLAMPS[op_name(node)], limit)
        if op_name(y) == "aten.add" and is_plain(y) and _is_whole(argument(y, 1)):
            y, threshold = argument(y, 0), threshold - argument(y, 1)
        elif op_name(y) in CLAMPS and CLAMPS[op_name(y)] != CLAMPS[op_name(node)] and _wraps(node, y) and y is operand:
            y = argument(y, 0)
        else:
            return None
    return None


def _is_read_as_mask(predicate: fx.Node, joint: Joint) -> bool:
    """Whether backward reads the decision, itself or joined to another (both limits of relu6 and hardtanh)."""
    readers = [reader for user in predicate.users for reader in (user.users if op_name(user) in JOINED else (user,))]
    return any(reader in joint.backward for reader in readers)


def _is_whole(number: object) -> bool:
    """Whether the number is exact in every floating point type."""
    return isinstance(number, (int, float)) and abs(number) <= 64 and number == int(number)


def _wraps(outer: fx.Node, inner: fx.Node) -> bool:
    """Whether two clamps leave an interval open between their limits."""
    lower, upper = (outer, inner) if CLAMPS[op_name(outer)] else (inner, outer)
    return _is_whole(argument(inner, 1)) and argument(lower, 1) <= argument(upper, 1)
