"""Means that a model weighs by hand: (w @ v) / w.sum(), as linear attention has them.

The gradient of a weight is what its element of v differs from the mean. Where all of v is about alike, that is little
beside v and the mean themselves, and so are errors of theirs: as in fused attention they get 8 bits at least.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.ir.arguments import argument
from fxapprox.ir.joint import Joint
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import behind_views, is_cheap, is_contraction, is_reduction, is_view, kind_of, op_name

RUNNING_SUMS = (  # those of the kind that means are taken with: padding and the like leave elements as they are
    "aten.cumsum", "aten.index_add", "aten.scatter_add", "aten.index_put", "aten._unsafe_index_put", "aten.avg_pool2d",
)  # fmt: skip


def weighted_means(joint: Joint, facts: Facts) -> tuple[set[fx.Node], set[fx.Node]]:
    """(what such means are of and the means themselves, weighted sums that are needed exactly); and views of them."""
    values: set[fx.Node] = set()
    sums: set[fx.Node] = set()
    for node in joint.forward_values:
        whole, total = argument(node, 0), argument(node, 1)
        if facts.ops[node] != "aten.div" or not isinstance(whole, fx.Node) or not isinstance(total, fx.Node):
            continue
        mean = set[fx.Node]()
        stack, weights, known = [whole], facts.made_of(total, through=partial(_is_of_activations, facts)), False
        while stack:
            value = stack.pop()
            factors, summed = _factors(value, facts)
            weighing = factors & weights
            if summed and weighing and weighing != factors:
                if not known:
                    sums.update(_factors(total, facts, until=factors)[0] - factors)
                else:  # q @ (k.mT @ v): what is read of it may be the least of it
                    sums.add(value)
                known = True
                stack += factors - weights
            elif factors and not summed:
                stack += factors  # a gate of the mean
            else:
                mean.add(value)
        if known:
            values.update(mean, (node,))
    return _with_copies(values - facts.free, joint), _with_copies(sums - facts.free, joint)


def _with_copies(found: set[fx.Node], joint: Joint) -> set[fx.Node]:
    for node in joint.forward_values:
        if len(node.all_input_nodes) == 1 and node.all_input_nodes[0] in found and _is_copy(node):
            found.add(node)
    return found


def _factors(node: fx.Node, facts: Facts, until: Collection[fx.Node] = ()) -> tuple[set[fx.Node], bool]:
    """(the factors of the product of activations that the node is another form of, whether it is a sum of products)."""
    summed = False
    while node in facts.depends and node not in facts.free and node not in until:
        moving = [part for part in node.all_input_nodes if part in facts.depends and part in facts.floats]
        if (is_contraction(node) or facts.ops[node] == "aten.mul") and len(moving) == 2:
            if any(part in facts.free or part in facts.fixed for part in moving):
                break
            return {behind_views(part, through=_is_copy) for part in moving}, summed or is_contraction(node)
        if len(moving) != 1 or not (_sums(node) or is_cheap(node)):
            break
        node, summed = moving[0], summed or _sums(node)
    return set(), False


def _is_of_activations(facts: Facts, node: fx.Node) -> bool:
    """Whether the node is a sum, cheap, or a product without parameters."""
    return facts.is_product_of_activations(node) or _sums(node) or is_cheap(node)


def _sums(node: fx.Node) -> bool:
    return is_reduction(node) or op_name(node) in RUNNING_SUMS


def _is_copy(node: fx.Node) -> bool:
    return (is_view(node) and op_name(node) != "getitem") or kind_of(node) in (Kind.COPY, Kind.CAST)
