"""What eigenvectors, inverses, solutions and other decompositions of matrices need exactly.

Their gradients are divided by gaps between eigenvalues, or solved with the matrix once more: that multiplies by up to
its condition number, and an error that a code brought in as well. Exactly needed is therefore

- whatever backward reads on its way to such a gradient, up to the loss;
- whatever the matrix was computed from by products of activations (a covariance of h): its gradient is large where the
  matrix is near to singular, and meets just the small differences in h that made it so. A product with a parameter ends
  the search: what lies before it only sees a gradient of usual size.

Matrices are also inverted and made orthogonal by products of their own products (Newton-Schulz). Such a polynomial of
a high degree multiplies errors as well, so its factors are needed exactly, back to products with parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.ir.arguments import argument, arguments
from fxapprox.ir.joint import Joint
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import is_cheap, is_reduction, is_view, kind_of, op_name, operator_of

DEGREE = 4  # of a polynomial in a matrix, up to which a code's error is multiplied by little
BRANCHES = 8  # of which degrees are told
OWN = (Kind.PART, Kind.PICK, Kind.EXPONENTIAL)  # of which degrees are counted anew
HARMLESS = ("vector_norm", "matrix_norm", "cross", "vecdot", "multi_dot", "diagonal")


def is_decomposition(node: fx.Node) -> bool:
    """Whether the operator decomposes a matrix, or solves with one."""
    name = op_name(node)
    return kind_of(node) is Kind.DECOMPOSITION or ("linalg_" in name and not name.endswith(HARMLESS))


def solving(joint: Joint, facts: Facts) -> set[fx.Node]:
    """Backward's operators that lead to a decomposition's gradient, or are part of it."""
    results: set[fx.Node] = set()
    for node in joint.forward_values:
        moving = [part for part in node.all_input_nodes if part in facts.depends]
        derived = is_cheap(node) and bool(moving) and all(part in results for part in moving)
        if derived or (node in facts.depends and is_decomposition(node)):
            results.add(node)
    found: set[fx.Node] = set()
    for node in reversed(joint.gm.graph.nodes):
        if node not in joint.backward or node.op != "call_function":
            continue
        if is_decomposition(node) or any(part in results for part in node.all_input_nodes) or (
            any(user in found for user in node.users)
        ):  # fmt: skip
            found.add(node)
    return found


def matrices(joint: Joint, facts: Facts) -> set[fx.Node]:
    """What decomposed matrices and polynomials of matrices are computed from, back to products with parameters."""
    polynomials = _polynomials(joint, facts)

    def through(node: fx.Node) -> bool:
        return is_cheap(node) or is_reduction(node) or facts.is_product_of_activations(node)

    starts = (n for n in joint.forward_values if is_decomposition(n) or n in polynomials)
    found = facts.made_of(*(part for node in starts for part in node.all_input_nodes), through=through)
    for node in joint.forward_values:  # backward reads them transposed
        if len(node.all_input_nodes) == 1 and node.all_input_nodes[0] in found and is_view(node):
            found.add(node)
    return found


def _polynomials(joint: Joint, facts: Facts) -> set[fx.Node]:
    """The products in which one value is a factor more than ``DEGREE`` times.

    Parts of a value, and exponentials of it, count as values of their own.
    """
    degrees: dict[fx.Node, Counter[fx.Node]] = {}
    found: set[fx.Node] = set()
    for node in joint.forward_values:
        if node not in facts.depends or node in facts.free or node in facts.fixed:
            continue
        factors = operator_of(node).factors
        made_of = [part for part in arguments(node) if isinstance(part, fx.Node)]
        if factors and not any(part in facts.free or part in facts.fixed for part in made_of):
            total = Counter[fx.Node]()
            for place in factors:
                total.update(degrees.get(argument(node, place), ()))
            degrees[node] = total
            if max(total.values(), default=0) > DEGREE:
                found.add(node)
        elif is_cheap(node) and kind_of(node) not in OWN:
            degrees[node] = _largest(degrees.get(part, {}) for part in node.all_input_nodes)
        else:
            degrees[node] = Counter((node,))
    return found


def _largest(degrees: Iterable[Mapping[fx.Node, int]]) -> Counter[fx.Node]:
    """Of each value the largest degree; of a sum of many branches those of the largest."""
    found = Counter[fx.Node]()
    for each in degrees:
        found |= Counter(each)
    return Counter(dict(found.most_common(BRANCHES)))
