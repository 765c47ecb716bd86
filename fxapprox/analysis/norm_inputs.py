"""What norms are taken of, where a code would lose it.

A norm (LayerNorm and GroupNorm, RMSNorm, F.normalize, a cosine similarity) divides each row by its length, and the
error of a row's code as well. A code's error is a share of what is largest in a group of elements: no harm where a
group lies within a row, nor where rows are of about the same length. Rows of a product of activations are not, when a
factor of a whole row comes near 0: q . k in linear attention, a gate. Then

- a product whose groups hold several rows, or parts of them, is not coded;
- a factor that whole rows have in common is needed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.codecs.groups import group_shape
from fxapprox.ir.arguments import argument
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import op_name, rule_of
from fxapprox.ir.tensors import tensor_of

LENGTHS = frozenset("aten.var_mean aten.var aten.std aten.linalg_vector_norm aten.norm aten.mean aten.sum".split())
ROOTS = frozenset("aten.rsqrt aten.sqrt aten.reciprocal aten.div aten.pow".split())
PERMUTATIONS = frozenset("aten.permute aten.transpose aten.t".split())
NORMED = "norms are taken of its rows, which may come near 0, and a code's group holds more than one of them"


def rows_of_products(joint: Joint, facts: Facts) -> tuple[set[fx.Node], set[fx.Node]]:
    """(normed products that no code is to hold, factors of whole rows that are needed exactly)."""
    uncoded: set[fx.Node] = set()
    factors: set[fx.Node] = set()
    stack = list(_normed(joint, facts))
    while stack:
        source, row = stack.pop()
        way = list(_way(source, row, facts))
        products = [(node, run) for node, run in way if _is_product(node, facts)]
        uncoded.update(node for node, run in way if products and run % _group(node))
        for product, run in products:
            moving = [part for part in product.all_input_nodes if part in facts.floats and part in facts.depends]
            if facts.ops[product] == "aten.mul":
                factors.update(part for part in moving if facts.sizes[part] < facts.sizes[product])
            else:
                stack.append(_factor_of_rows(product, run))
    return uncoded, factors - facts.free


def _factor_of_rows(product: fx.Node, run: int) -> tuple[fx.Node, int]:
    """The factor of a matrix product whose rows (columns, where rows are no neighbours) make those of the result."""
    left, right = (product.all_input_nodes * 2)[-2:]
    inner = tensor_of(left)
    return (right, 1) if run == 1 or inner is None else (left, inner.shape[-1])


def _normed(joint: Joint, facts: Facts) -> Iterator[tuple[fx.Node, int]]:
    """What a length is taken of, and how many neighbours belong to one row; norms over the batch are left out."""
    for node in joint.forward_values:
        source = argument(node, 0)
        if facts.ops[node] not in LENGTHS or not isinstance(source, fx.Node) or not _is_divisor(node):
            continue
        if facts.ops[node] in ("aten.mean", "aten.sum"):
            square = _uncast(source)
            if op_name(square) not in ("aten.pow", "aten.mul", "aten.square"):
                continue
            source = square.all_input_nodes[0]
        value = tensor_of(source)
        dims = argument(node, "dim")
        if value is None or source not in facts.sizes:
            continue
        dims = [dims] if isinstance(dims, int) else dims
        reduced = {d % value.dim() for d in dims} if dims and value.dim() else set(range(value.dim()))
        if 0 in reduced:
            continue
        run = 1
        for d in reversed(range(value.dim())):
            if d not in reduced and value.shape[d] != 1:
                break
            run *= value.shape[d] if isinstance(value.shape[d], int) else 1
        yield source, run


def _is_divisor(node: fx.Node) -> bool:
    """Whether a root or a quotient is made of the statistic."""
    stack, seen = list(node.users), set[fx.Node]()
    while stack:
        user = stack.pop()
        if user in seen:
            continue
        seen.add(user)
        if op_name(user) in ROOTS:
            return True
        rule = rule_of(user)
        if rule is not None and rule.cheap and len(user.all_input_nodes) == 1:
            stack += user.users
    return op_name(node) in ("aten.linalg_vector_norm", "aten.norm", "aten.std")


def _uncast(node: fx.Node) -> fx.Node:
    while op_name(node) in ("prims.convert_element_type", "aten._to_copy"):
        node = node.all_input_nodes[0]
    return node


def _way(node: fx.Node, run: int, facts: Facts) -> Iterator[tuple[fx.Node, int]]:
    """The value and what it is another form of, back to the operator that made it: each with its run.

    A run is how many neighbours, in the order of the value's dimensions, are known to lie in one row.
    """
    while node in facts.depends and node not in facts.free and node in facts.sizes:
        yield node, run
        rule, name = rule_of(node), facts.ops[node]
        large = [p for p in node.all_input_nodes if p in facts.depends and facts.sizes.get(p) == facts.sizes[node]
                 and p not in facts.free]  # fmt: skip
        if rule is None or not rule.cheap or len(large) != 1:
            return
        if name in PERMUTATIONS:
            run = math.gcd(run, _unmoved(node, large[0]))
        node = large[0]


def _unmoved(node: fx.Node, source: fx.Node) -> int:
    """How many neighbours stay neighbours in a permutation of dimensions."""
    before, after = tensor_of(source), tensor_of(node)
    if before is None or after is None or op_name(node) != "aten.permute":
        return 1
    run, kept = 1, [d for d in range(before.dim()) if before.shape[d] != 1]
    moved = [d % before.dim() for d in argument(node, "dims") if before.shape[d] != 1]
    for old, new in zip(reversed(kept), reversed(moved), strict=True):
        if old != new or not isinstance(before.shape[old], int):
            break
        run *= before.shape[old]
    return run


def _is_product(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is a product of activations, and not one of them by its own statistic."""
    moving = [p for p in node.all_input_nodes if p in facts.depends and p not in facts.free and p in facts.floats]
    if facts.ops[node] in ("aten.bmm", "aten.baddbmm", "aten.mm"):
        return len(moving) > 1
    return facts.ops[node] == "aten.mul" and len(moving) > 1 and not any(p in facts.statistics for p in moving)


def _group(node: fx.Node) -> int:
    """Elements that share a range in a code of the value."""
    value = tensor_of(node)
    return group_shape(value.shape)[1] if value is not None else 1
