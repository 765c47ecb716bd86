"""Values whose elements differ so much in size that a code would drown the small ones that count.

A code's error is a share of the largest element in its group. Mostly the large elements make the gradient as well; not
so in six cases, and then a value is stored as it is, or computed again from what it came from:

- exponentials without a bound, and what a mask fills in (a score of -1e9), with linear functions of these;
- below a fraction bar, in a root or in a logarithm it is the relative error that counts. A value that grew there by a
  square or an exponential (1 + x**2, 1 + exp(-x)) has far larger elements than those near 1, where the quotient lives;
- products of many factors, and linear functions of these;
- quotients by what may come near 0, and linear functions of these: few elements hold nearly all of them;
- derivatives that only backward reads (s - t of a cross-entropy of sigmoids s): what is rare is small in all but few
  places, and would become 0 there, or not, in all of them alike; errors of what forward computed average out;
- what a quotient's divisor is made of, if that can come near 0 (x / |x|, log(x**2 + y**2)): the small elements have
  the large derivatives. A divisor that many elements were summed into is not near 0 by chance.
"""

from __future__ import annotations

import math

from torch import fx

from fxapprox.analysis.facts import Facts
from fxapprox.analysis.intervals import EVERYTHING
from fxapprox.analysis.norm_inputs import NORMED, rows_of_products
from fxapprox.analysis.reads import Reads, is_softmax_output
from fxapprox.ir.arguments import argument, arguments, operands
from fxapprox.ir.joint import Joint
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import (
    is_cheap,
    is_exponential,
    is_reduction,
    is_view,
    kind_of,
    op_name,
    operator_of,
    table_use,
    uses_of,
)
from fxapprox.ir.records import Use

HUGE = 1e4  # times larger than what stands beside it
SPREAD = 8  # a divisor's largest over its smallest, up to which an error of one element is one of all
FEW = 8  # elements: a sum over fewer may come near 0 by chance
POWERS = ("aten.cumprod", "aten.prod")  # of scatters their argument says so
GROWING = (Kind.EXPONENTIAL, Kind.POWER)
LINEAR_SUMS = (Kind.CONTRACTION, Kind.RUNNING)

EXPONENTIAL = "an exponential or a mask's filling makes its elements too different in size for one code"
POWER = "it is a product of many elements: its own are too different in size for one code"
RELATIVE = "it stands below a fraction bar, in a root or a logarithm, and grew: its small elements count"
QUOTIENT = "it is a quotient by what may come near 0: its elements are too different in size for one code"
DERIVATIVE = "it is a derivative, taken of what forward computes: small ones would all become 0"
NEAR_ZERO = "its small elements have large derivatives: a quotient, root or logarithm is made of it"


def uneven_of(joint: Joint, facts: Facts, reads: Reads) -> dict[fx.Node, str]:
    """The forward values that no code is to hold, each with the reason."""
    found: dict[fx.Node, str] = {}
    sums = _sums_of_many(joint, facts)
    relative, near_zero = _read_relatively(joint, facts), _made_into_quotients(joint, facts, sums)
    derivatives = _derivatives(joint, facts, reads)
    normed, _ = rows_of_products(joint, facts)
    for node in joint.forward_values:
        if node not in facts.floats:
            continue
        if _is_exponential(node, facts, found):
            found[node] = EXPONENTIAL
        elif _is_power(node, facts, found):
            found[node] = POWER
        elif _is_quotient(node, facts, sums, found):
            found[node] = QUOTIENT
        elif _has_grown(node, facts, relative, found):
            found[node] = RELATIVE
        elif node in near_zero or _is_multiple(node, facts, found):
            found[node] = NEAR_ZERO
        elif node in normed:
            found[node] = NORMED
        elif node in derivatives:
            found[node] = DERIVATIVE
    return found


# --- derivatives -------------------------------------------------------------------------------------


def _derivatives(joint: Joint, facts: Facts, reads: Reads) -> set[fx.Node]:
    """What no output of forward is made of, and backward can take of codes of what one is made of; but softmaxes."""
    used = {node for node in joint.outputs[0] if isinstance(node, fx.Node)}
    found: set[fx.Node] = set()
    for node in reversed(list(joint.forward_values)):
        if node in used:
            used.update(node.all_input_nodes)
        elif not is_cheap(node) or is_view(node) or is_softmax_output(node, facts) or _is_centred(node, facts):
            continue
        elif is_exponential(node) or all(
            use < Use.SENSITIVE or part not in facts.floats for part, use in reads.get(node, ())
        ):
            found.add(node)
    return found


def _is_centred(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is an activation, less or times a statistic of it."""
    return any(part in facts.statistics for part in node.all_input_nodes)


# --- exponentials and what masks fill in -----------------------------------------------------------


def _is_exponential(node: fx.Node, facts: Facts, found: dict[fx.Node, str]) -> bool:
    low, high = facts.bounds[node]
    if max(-low, high) < HUGE or not _spreads(node):
        return False
    name, parts = facts.ops[node], node.all_input_nodes
    if is_exponential(node):
        return bool(facts.roots[node])  # those of parameters scale whole channels
    if name == "aten.where":
        if any(_is_huge(argument(node, side), facts) for side in ("self", "other")):
            return True
        if argument(node, "condition") in facts.decisions:
            return False  # the pieces of a function, each where it belongs
    elif (
        name == "aten.mul" and node not in facts.depends and any(_is_huge(factor, facts) for factor in arguments(node))
    ):
        return True  # a mask, times what it fills in
    elif name == "aten.div":
        parts = [part for part in (argument(node, "self"),) if isinstance(part, fx.Node)]
    return uses_of(node)[0] in (Use.LINEAR, Use.DECISION) and any(found.get(part) == EXPONENTIAL for part in parts)


def _is_huge(value: object, facts: Facts) -> bool:
    """Whether it is a finite constant of this size."""
    low, high = facts.bounds[value] if isinstance(value, fx.Node) else (value, value)
    return low == high and isinstance(low, (int, float)) and HUGE <= abs(low) < math.inf


def _is_power(node: fx.Node, facts: Facts, found: dict[fx.Node, str]) -> bool:
    """Whether the node multiplies many elements, or is a linear function of such products."""
    if facts.ops[node] in POWERS or argument(node, "reduce") in ("prod", "multiply"):
        return bool(facts.roots[node])
    linear = _spreads(node) and uses_of(node)[-1] is Use.LINEAR
    return linear and any(found.get(part) == POWER for part in node.all_input_nodes)


def _spreads(node: fx.Node) -> bool:
    """Whether elements are made of few elements, so that they differ as those do."""
    return is_cheap(node) or kind_of(node) is Kind.RUNNING


# --- what is read relatively -----------------------------------------------------------------------


def _is_singular(user: fx.Node, position: int) -> bool:
    """Whether the operator's derivative has no bound where this operand is small."""
    if position not in operator_of(user).singular:
        return False
    if op_name(user) != "aten.pow":
        return argument(user, "rounding_mode") is None
    power = argument(user, "exponent")
    return not isinstance(power, (int, float)) or (power < 2 and power != 1)


def _is_even(node: fx.Node, user: fx.Node, facts: Facts) -> bool:
    """Whether all elements of a divisor are known to be of about the same size."""
    shift = 1 if op_name(user) == "aten.log1p" else 0
    low, high = (bound + shift for bound in facts.bounds.get(node, EVERYTHING))
    return (low > 0 and high <= SPREAD * low) or (high < 0 and -low <= -SPREAD * high)


def _read_relatively(joint: Joint, facts: Facts) -> set[fx.Node]:
    """Forward values whose relative error counts: divisors and the like, and what is added up to them."""
    found: set[fx.Node] = set()
    for node in reversed(list(joint.forward_values)):
        if node in facts.depends and any(_reads_relatively(user, node, facts, found) for user in node.users):
            found.add(node)
    return found


def _reads_relatively(user: fx.Node, node: fx.Node, facts: Facts, found: set[fx.Node]) -> bool:
    for position, operand in operands(user):
        if operand is not node:
            continue
        if _is_singular(user, position) and not _is_even(node, user, facts):
            return True
        if user in found and (table_use(user, position) is Use.LINEAR and not _multiplies(user, facts)):
            return _passes_on(user, facts)
    return False


def _multiplies(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is a product of values that training moves."""
    moving = [factor for factor in arguments(node) if isinstance(factor, fx.Node) and factor in facts.depends]
    return facts.ops.get(node) in ("aten.mul", "aten.div") and len(moving) > 1


def _passes_on(node: fx.Node, facts: Facts) -> bool:
    """Whether each element of the result is made of few elements."""
    return is_cheap(node) or _sums_few(node, facts)


def _sums_few(node: fx.Node, facts: Facts) -> bool:
    source = argument(node, 0)
    if not is_reduction(node) or not isinstance(source, fx.Node) or source not in facts.sizes:
        return False
    results = [node] if node in facts.sizes else [part for part in node.users if part in facts.sizes]
    return bool(results) and facts.sizes[source] < FEW * facts.sizes[results[0]]


def _has_grown(node: fx.Node, facts: Facts, relative: set[fx.Node], found: dict[fx.Node, str]) -> bool:
    """Whether a value that is read relatively grew by a square or an exponential; or is a quotient by such."""
    name, low, high = facts.ops[node], *facts.bounds[node]
    if node in facts.statistics or not (facts.roots[node] or _sums_few(node, facts)):
        return False
    power = name in ("aten.reciprocal", "aten.rsqrt") or kind_of(node) is Kind.POWER or _squares(node)
    if power and found.get(node.all_input_nodes[0]) == RELATIVE:
        return True  # of a quotient by what has grown, a code's error would meet the growth
    if node not in relative:
        return False
    if kind_of(node) in GROWING or _multiplies(node, facts):
        return max(-low, high) > SPREAD
    linear = table_use(node, 0) is Use.LINEAR and _passes_on(node, facts)
    return linear and any(found.get(part) == RELATIVE for part in node.all_input_nodes)


def _squares(node: fx.Node) -> bool:
    return op_name(node) == "aten.mul" and argument(node, 0) is argument(node, 1)


# --- quotients, and what they are made of --------------------------------------------------------------------


def _is_quotient(node: fx.Node, facts: Facts, sums: set[fx.Node], found: dict[fx.Node, str]) -> bool:
    """Whether the node divides by what may come near 0, or is a linear function of such a quotient."""
    if not is_cheap(node) or node in sums:
        return False
    name, position = facts.ops[node], operator_of(node).divisor
    if position is not None and isinstance(divisor := argument(node, position), fx.Node):
        small = divisor not in sums and _is_singular(node, position) and _may_vanish(divisor, node, facts)
        if small and (name != "aten.pow" or _is_negative(argument(node, "exponent"))):
            return True
    return uses_of(node)[-1] is Use.LINEAR and any(found.get(part) == QUOTIENT for part in node.all_input_nodes)


def _sums_of_many(joint: Joint, facts: Facts) -> set[fx.Node]:
    """Reductions of many elements, and what is computed from such alone: never near 0 by chance."""
    found: set[fx.Node] = set()
    for node in joint.forward_values:
        moving = [part for part in node.all_input_nodes if part in facts.depends]
        if is_reduction(node):
            several = not _sums_few(node, facts)
        else:
            several = is_cheap(node) and bool(moving) and all(part in found for part in moving)
        if several:
            found.add(node)
    return found


def _is_negative(power: object) -> bool:
    return not isinstance(power, (int, float)) or power < 0


def _is_multiple(node: fx.Node, facts: Facts, found: dict[fx.Node, str]) -> bool:
    """Whether the node is another form of a value that quotients are made of: with another sign, scale or shape."""
    moving = [part for part in node.all_input_nodes if part in facts.depends]
    linear = is_cheap(node) and uses_of(node)[0] is Use.LINEAR and node not in facts.free
    return linear and len(moving) == 1 and len(node.all_input_nodes) == 1 and found.get(moving[0]) == NEAR_ZERO


def _made_into_quotients(joint: Joint, facts: Facts, sums: set[fx.Node]) -> set[fx.Node]:
    """Every value on the way from those that are not cheap to compute to a divisor that may come near 0."""
    stack = [
        operand for user in joint.gm.graph.nodes if user.op == "call_function" and operator_of(user).singular
        for position, operand in operands(user) if _is_singular(user, position) and _may_vanish(operand, user, facts)
    ]  # fmt: skip
    divisors, found = set(stack) - sums, set[fx.Node]()
    for node, name in facts.ops.items():
        if name == "aten.div" and argument(node, 1) in divisors:
            numerator = argument(node, 0)
            factors = numerator.all_input_nodes if facts.ops.get(numerator) == "aten.mul" else [numerator]
            # a weighted sum, or a multiple of it, over the sum of its weights: both are small together
            found.update(factor for factor in factors if factor in facts.ops and kind_of(factor) in LINEAR_SUMS)
    while stack:
        node = stack.pop()
        if node in found or node in sums or node in facts.free or node not in facts.depends:
            continue
        found.add(node)
        if _passes_on(node, facts):
            stack += (part for part in node.all_input_nodes if part in facts.ops)
        elif kind_of(node) in LINEAR_SUMS and _adds_up(node, facts):
            # of what is never negative the sum is small where all of it is
            stack += (part for part in node.all_input_nodes if _is_positive(part, facts))
    return found & facts.floats


def _adds_up(node: fx.Node, facts: Facts) -> bool:
    """Whether all factors of a linear operator are fixed, or never negative."""
    floats = [part for part in node.all_input_nodes if part in facts.floats]
    return all(part not in facts.depends or _is_positive(part, facts) for part in floats)


def _is_positive(node: fx.Node, facts: Facts) -> bool:
    return node in facts.floats and facts.bounds[node][0] >= 0


def _may_vanish(node: fx.Node, user: fx.Node, facts: Facts) -> bool:
    """Whether nothing keeps the operand away from where the derivative has no bound."""
    if node not in facts.depends:
        return False
    low, high = facts.bounds.get(node, EVERYTHING)
    if op_name(user) == "aten.log1p":
        return low < 0
    return low < 1 and high > -1
