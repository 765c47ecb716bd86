"""Of which products of activations is a value another form: scaled, cast, permuted, joined with others?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.analysis.normed import Row
from fxapprox.ir.arguments import argument
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import is_cheap, is_exponential, is_reduction, kind_of, op_name, operator_of
from fxapprox.ir.tensors import tensor_of


def ways(source: fx.Node, run: int, facts: Facts) -> Iterator[list[Row]]:
    """From the value back to each product of activations that it is another form of, the product last."""
    stack = [[(source, run)]]
    while stack:
        way = stack.pop()
        node, run = way[-1]
        if node not in facts.depends or node in facts.free or node not in facts.sizes:
            continue
        if is_product(node, facts) or _is_scaled(node, facts):
            yield way
        stack += ([*way, (part, inner)] for part, inner in _forms(node, run, facts))


def is_product(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is a product of activations, and not one of them by its own statistic."""
    moving = [p for p in node.all_input_nodes if p in facts.depends and p not in facts.free and p in facts.floats]
    if multiplies_matrices(node):
        return len(moving) > 1
    return facts.ops[node] == "aten.mul" and len(moving) > 1 and not any(_is_own(p, node, facts) for p in moving)


def multiplies_matrices(node: fx.Node) -> bool:
    """Whether two matrices are multiplied; with a bias added it is a layer, one of them its parameter."""
    return bool(operator_of(node).factors) and op_name(node) != "aten.addmm"


def _forms(node: fx.Node, run: int, facts: Facts) -> Iterator[Row]:
    """What the value is another form of; of products and joined values all that they are made of."""
    if not is_cheap(node) or is_exponential(node) or facts.ops[node] == "aten.sigmoid":
        return  # of what is near 0 their results are not
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
