"""What norms are taken of, where a code would lose it.

A norm (LayerNorm and GroupNorm, RMSNorm, F.normalize, a cosine similarity) divides each row by its length, and the
error of a row's code as well. A code's error is a share of what is largest in a group of elements: no harm where a
group lies within a row, nor where rows are of about the same length. Rows of a product of activations are not, when a
factor of a whole row comes near 0: q . k in linear attention, a gate. Then

- a product whose groups hold several rows, or parts of them, is not coded;
- a factor that whole rows have in common is needed exactly.
"""

from __future__ import annotations

from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.analysis.normed import Row, normalized, normed
from fxapprox.analysis.products import is_product, multiplies_matrices, ways
from fxapprox.codecs.groups import group_shape
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import is_exponential
from fxapprox.ir.tensors import numel, tensor_of

UNBOUNDED = 1e4
NORMED = "norms are taken of its rows, which may come near 0, and a code's group holds more than one of them"


def rows_of_products(joint: Joint, facts: Facts) -> tuple[set[fx.Node], set[fx.Node]]:
    """(normed products that no code is to hold, what is needed exactly: factors of whole rows and what meets them)."""
    uncoded: set[fx.Node] = set()
    exact: set[fx.Node] = set()
    # each with what lies between it and its norm
    stack = [(row, frozenset(normalized(row[0], facts))) for row in normed(joint, facts)]
    seen: set[Row] = set()
    while stack:
        row, behind = stack.pop()
        if row in seen:
            continue
        seen.add(row)
        for way in ways(*row, facts):
            product, run = way[-1]
            between = behind.union(node for node, _ in way)
            moving = [part for part in product.all_input_nodes if part in facts.floats and part in facts.depends]
            if multiplies_matrices(product):
                uncoded.update(node for node, run in way if run % _group(node))
                stack.append((_factor_of_rows(product, run), between.union(moving)))
                continue
            if is_product(product, facts):
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


def _group(node: fx.Node) -> int:
    """Elements that share a range in a code of the value."""
    value = tensor_of(node)
    return group_shape(value.shape)[1] if value is not None else 1
