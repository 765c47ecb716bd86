"""What eigenvectors, inverses, solutions and other decompositions of matrices need exactly.

Their gradients are divided by gaps between eigenvalues, or solved with the matrix once more: that multiplies by up to
its condition number, and an error that a code brought in as well. Exactly needed is therefore

- whatever backward reads on its way to such a gradient, up to the loss;
- whatever the matrix was computed from by products of activations (a covariance of h): its gradient is large where the
  matrix is near to singular, and meets just the small differences in h that made it so. A product with a parameter ends
  the search: what lies before it only sees a gradient of usual size.
"""

from __future__ import annotations

from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import CONTRACTIONS, REDUCTIONS, op_name, rule_of

OTHERS = frozenset(
    "aten.cholesky aten.cholesky_solve aten.cholesky_inverse aten.triangular_solve aten.lu_unpack aten.geqrf"
    " aten.ormqr aten.orgqr aten.logdet aten.svd aten.qr aten.inverse".split()
)
HARMLESS = ("vector_norm", "matrix_norm", "cross", "vecdot", "multi_dot", "diagonal")


def is_decomposition(node: fx.Node) -> bool:
    """Whether the operator decomposes a matrix, or solves with one."""
    name = op_name(node)
    return name in OTHERS or ("linalg_" in name and not name.endswith(HARMLESS))


def solving(joint: Joint, facts: Facts) -> set[fx.Node]:
    """Backward's operators that lead to a decomposition's gradient, or are part of it."""
    results: set[fx.Node] = set()
    for node in joint.forward_values:
        rule = rule_of(node)
        moving = [part for part in node.all_input_nodes if part in facts.depends]
        derived = rule is not None and rule.cheap and bool(moving) and all(part in results for part in moving)
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
    """What decomposed matrices are computed from, back to products with parameters."""
    stack = [part for node in joint.forward_values if is_decomposition(node) for part in node.all_input_nodes]
    found: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in found or node in facts.free or node not in facts.depends:
            continue
        found.add(node)
        rule, name = rule_of(node), facts.ops[node]
        of_activations = name in CONTRACTIONS and not any(part in facts.free for part in node.all_input_nodes)
        if (rule is not None and rule.cheap) or name in REDUCTIONS or of_activations:
            stack += (part for part in node.all_input_nodes if part in facts.ops)
    return found
