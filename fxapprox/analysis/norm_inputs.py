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
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import behind_views, is_cheap, is_exponential, is_reduction, kind_of, op_name, operator_of
from fxapprox.ir.tensors import numel, tensor_of

SCALED = ("aten.sub", "aten.mul", "aten.div", "aten.view", "aten.reshape")
UNBOUNDED = 1e4
NORMED = "norms are taken of its rows, which may come near 0, and a code's group holds more than one of them"

Row = tuple[fx.Node, int]  # a value, and how many neighbours, in the order of its dimensions, lie in one row


def rows_of_products(joint: Joint, facts: Facts) -> tuple[set[fx.Node], set[fx.Node]]:
    """(normed products that no code is to hold, what is needed exactly: factors of whole rows and what meets them)."""
    uncoded: set[fx.Node] = set()
    exact: set[fx.Node] = set()
    # each with what lies between it and its norm
    stack = [(row, frozenset(_normalized(row[0], facts))) for row in _normed(joint, facts)]
    seen: set[Row] = set()
    while stack:
        row, behind = stack.pop()
        if row in seen:
            continue
        seen.add(row)
        for way in _ways(*row, facts):
            product, run = way[-1]
            name, parts = facts.ops[product], [p for p in product.all_input_nodes if p in facts.floats]
            between = behind.union(node for node, _ in way)
            moving = [part for part in parts if part in facts.depends]
            if _multiplies_matrices(product):
                uncoded.update(node for node, run in way if run % _group(node))
                stack.append((_factor_of_rows(product, run), between.union(moving)))
                continue
            if name == "aten.mul" and _is_product(product, facts):
                uncoded.update(node for node, run in way if run % _group(node))
                exact.update(part for part in moving if facts.sizes[part] < facts.sizes[product])
            if any(_is_common(part, product, run) or _is_unbounded(part, facts) for part in moving):
                # a norm leaves nearly nothing of its gradient: the rest cancels, errors would not
                exact.update(moving, between)
    return uncoded, exact - facts.free


def _factor_of_rows(product: fx.Node, run: int) -> Row:
    """The factor of a matrix product whose rows (columns, where rows are no neighbours) make those of the result."""
    left, right = (product.all_input_nodes * 2)[-2:]
    inner = tensor_of(left)
    return (right, 1) if run == 1 or inner is None else (left, inner.shape[-1])


def _normed(joint: Joint, facts: Facts) -> Iterator[Row]:
    """What a length, or a sum to divide by, is taken of, in its rows; norms over the batch are left out."""
    for node in joint.forward_values:
        source = argument(node, 0)
        if not operator_of(node).length or not isinstance(source, fx.Node):
            continue
        if facts.ops[node] in ("aten.mean", "aten.sum"):
            square = _uncast(source)
            if _is_square(square):
                source = square.all_input_nodes[0]
            elif not _divides(node):
                continue
        if not _is_divisor(node):
            continue
        value = tensor_of(source)
        dims = argument(node, "dim")
        if value is None or source not in facts.sizes:
            continue
        dims = [dims] if isinstance(dims, int) else dims
        reduced = {d % value.dim() for d in dims} if dims and value.dim() else set(range(value.dim()))
        if 0 in reduced and not (isinstance(value.shape[0], int) and value.shape[0] == 1):
            continue
        run = 1
        for d in reversed(range(value.dim())):
            if d not in reduced and value.shape[d] != 1:
                break
            run *= value.shape[d] if isinstance(value.shape[d], int) else 1
        yield source, run


def _is_square(node: fx.Node) -> bool:
    return kind_of(node) is Kind.POWER or (op_name(node) == "aten.mul" and len(node.all_input_nodes) == 1)


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


def _uncast(node: fx.Node) -> fx.Node:
    while kind_of(node) is Kind.CAST:
        node = node.all_input_nodes[0]
    return node


def _ways(source: fx.Node, run: int, facts: Facts) -> Iterator[list[Row]]:
    """From the value back to each product of activations that it is another form of, the product last."""
    stack = [[(source, run)]]
    while stack:
        way = stack.pop()
        node, run = way[-1]
        if node not in facts.depends or node in facts.free or node not in facts.sizes:
            continue
        if _is_product(node, facts) or _is_scaled(node, facts):
            yield way
        stack += ([*way, (part, inner)] for part, inner in _forms(node, run, facts))


def _forms(node: fx.Node, run: int, facts: Facts) -> Iterator[Row]:
    """What the value is another form of; of products and joined values all that they are made of."""
    if not is_cheap(node) or is_exponential(node) or facts.ops[node] == "aten.sigmoid":
        return  # near 0 those are not where what they are made of is
    moving = [part for part in node.all_input_nodes if part in facts.depends and part not in facts.free]
    if kind_of(node) is Kind.JOIN:
        for part in moving:
            value = tensor_of(part)
            if value is not None and value.dim():
                yield part, math.gcd(run, value.shape[-1]) if isinstance(value.shape[-1], int) else 1
        return
    large = [part for part in moving if facts.sizes.get(part) == facts.sizes[node]]
    if len(large) == 1 or facts.ops[node] == "aten.mul":
        for part in large:
            yield part, math.gcd(run, _unmoved(node, part)) if kind_of(node) is Kind.PERMUTATION else run


def _is_common(factor: fx.Node, product: fx.Node, run: int) -> bool:
    """Whether the factor has one element for a whole row of the product."""
    small, value = tensor_of(factor), tensor_of(product)
    if small is None or value is None:
        return False
    shared, sizes = 1, [1] * (value.dim() - small.dim()) + list(small.shape)
    for size, whole in zip(reversed(sizes), reversed(value.shape), strict=True):
        if size != 1 or not isinstance(whole, int):
            break
        shared *= whole
    return shared > 1 and shared % run == 0 and (run > 1 or numel(small) == 1)


def _is_unbounded(factor: fx.Node, facts: Facts) -> bool:
    return is_exponential(factor) and facts.bounds[factor][1] > UNBOUNDED


def _normalized(source: fx.Node, facts: Facts) -> Iterator[fx.Node]:
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
    if _multiplies_matrices(node):
        return len(moving) > 1
    return facts.ops[node] == "aten.mul" and len(moving) > 1 and not any(_is_own(p, node, facts) for p in moving)


def _multiplies_matrices(node: fx.Node) -> bool:
    """Whether two matrices are multiplied; with a bias added it is a layer, one of them its parameter."""
    return bool(operator_of(node).factors) and op_name(node) != "aten.addmm"


def _is_scaled(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is multiplied or divided by a value, or a parameter, that is smaller and no statistic of it."""
    if facts.ops[node] not in ("aten.mul", "aten.div"):
        return False
    small = [p for p in node.all_input_nodes if p in facts.depends and facts.sizes.get(p, 0) < facts.sizes[node]]
    return bool(small) and not any(_is_own(part, node, facts) for part in small)


def _is_own(part: fx.Node, product: fx.Node, facts: Facts) -> bool:
    """Whether the factor is a statistic of what it multiplies."""
    if part not in facts.statistics:
        return False
    others = [other for other in product.all_input_nodes if other is not part]
    made_of = facts.made_of(part, through=_is_cheap_or_reduces)
    return bool(made_of.intersection(*(facts.made_of(other, through=_is_cheap_or_reduces) for other in others)))


def _is_cheap_or_reduces(node: fx.Node) -> bool:
    return is_cheap(node) or is_reduction(node)


def _group(node: fx.Node) -> int:
    """Elements that share a range in a code of the value."""
    value = tensor_of(node)
    return group_shape(value.shape)[1] if value is not None else 1
