"""What norms are taken of: LayerNorm and GroupNorm, RMSNorm, F.normalize, a cosine similarity.

A norm divides each row by its length, or by a sum. It is known by that: a length, a deviation or a sum of squares of
the row, and a root or a quotient of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.ir.arguments import argument
from fxapprox.ir.joint import Joint
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import behind_views, is_cheap, kind_of, op_name, operator_of
from fxapprox.ir.tensors import tensor_of

SCALED = ("aten.sub", "aten.mul", "aten.div", "aten.view", "aten.reshape")  # what a norm does with its statistics

Row = tuple[fx.Node, int]  # a value, and how many neighbours, in the order of its dimensions, lie in one row


def normed(joint: Joint, facts: Facts) -> Iterator[Row]:
    """What a length, or a sum to divide by, is taken of, in its rows; norms over the batch are left out."""
    for node in joint.forward_values:
        source = _measured(node)
        value = tensor_of(source) if source is not None and _is_divisor(node) else None
        if source is None or value is None or source not in facts.sizes:
            continue
        dims = argument(node, "dim")
        dims = [dims] if isinstance(dims, int) else dims
        reduced = {d % value.dim() for d in dims} if dims and value.dim() else set(range(value.dim()))
        if 0 in reduced and not (isinstance(value.shape[0], int) and value.shape[0] == 1):
            continue
        yield source, _neighbours(value, reduced)


def normalized(source: fx.Node, facts: Facts) -> Iterator[fx.Node]:
    """The value, shifted and scaled by its own statistics."""
    stack = [source]
    while stack:
        node = stack.pop()
        for user in node.users:
            others = [part for part in user.all_input_nodes if part is not node and part in facts.depends]
            if (
                user in facts.ops
                and op_name(user) in SCALED
                and all(behind_views(p) in facts.statistics for p in others)
            ):
                yield user
                stack.append(user)


def _measured(node: fx.Node) -> fx.Node | None:
    """What the node takes the length of, or a sum to divide by; None if it does neither."""
    source = argument(node, 0)
    if not operator_of(node).length or not isinstance(source, fx.Node):
        return None
    if op_name(node) not in ("aten.mean", "aten.sum"):
        return source
    square = _uncast(source)
    if _is_square(square):
        return square.all_input_nodes[0]
    return source if _divides(node) else None


def _neighbours(value: torch.Tensor, reduced: Collection[int]) -> int:
    """How many neighbours lie in one row, if these dimensions are reduced; symbolic sizes count as 1."""
    sizes: list[int] = []
    for d in reversed(range(value.dim())):
        if d not in reduced and value.shape[d] != 1:
            break
        sizes.append(value.shape[d] if isinstance(value.shape[d], int) else 1)
    return math.prod(sizes)


def _is_square(node: fx.Node) -> bool:
    return kind_of(node) is Kind.POWER or (op_name(node) == "aten.mul" and len(node.all_input_nodes) == 1)


def _uncast(node: fx.Node) -> fx.Node:
    while kind_of(node) is Kind.CAST:
        node = node.all_input_nodes[0]
    return node


def _divides(node: fx.Node) -> bool:
    """Whether something is divided by the sum, or by what is little more than it."""
    for user in node.users:
        name = op_name(user)
        if name == "aten.reciprocal" or (name == "aten.div" and argument(user, 1) is node):
            return True
        if name != "aten.div" and is_cheap(user) and len(user.all_input_nodes) == 1 and _divides(user):
            return True
    return False


def _is_divisor(node: fx.Node) -> bool:
    """Whether a root or a quotient is made of the statistic."""
    stack, seen = list(node.users), set[fx.Node]()
    while stack:
        user = stack.pop()
        if user in seen:
            continue
        seen.add(user)
        if operator_of(user).divisor is not None or op_name(user) == "aten.sqrt":
            return True
        if is_cheap(user) and len(user.all_input_nodes) == 1:
            stack += user.users
    return op_name(node) in ("aten.linalg_vector_norm", "aten.norm", "aten.std")
