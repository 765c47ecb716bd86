"""How does backward read each forward value, and where does an error in it end?

A value is as delicate as the strictest use of it on the way to a gradient, along the operators that backward could run
again. The table in ``operators.py`` says how an operator depends on an operand; what is known of the operand refines it
(``exp`` of something that is never positive is bounded).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import fx

from fxapprox.analysis.decompositions import matrices, solving
from fxapprox.analysis.facts import Facts
from fxapprox.analysis.intervals import EVERYTHING, INF
from fxapprox.analysis.norm_inputs import rows_of_products
from fxapprox.analysis.weighted_means import weighted_means
from fxapprox.ir.arguments import argument, arguments, operands
from fxapprox.ir.joint import Joint
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import is_cheap, is_exponential, is_plain, kind_of, op_name, table_use, uses_of
from fxapprox.ir.records import Reach, Use
from fxapprox.ir.tensors import element_of, is_float

# how many times steeper than exp(-x), exp(-x * x / 2), or a sigmoid, a function may be for its operand to be coded
STEEP, STEEP_SIGMOID = 2, 10

BOUNDED = 1.02  # exponents up to 1: the derivative is at most e
Reads = Mapping[fx.Node, tuple[tuple[fx.Node, Use], ...]]


class Asked(NamedTuple):
    """What backward asks of a forward value.

    Attributes:
        demand: the strictest use by backward's own operators; None if they do not read it.
        every: the strictest use in all, operators that backward runs again included.
        why: the reason for ``every``, in words.
        weights: whether that is a softmax: of the value itself, or of what is made of it.
    """

    demand: Use | None
    every: Use | None
    why: str
    weights: bool = False


# --- one operator --------------------------------------------------------------------------------


def reads_of(joint: Joint, facts: Facts) -> Reads:
    """The forward values that each operator reads, forward's and backward's, and how, in the order of its operands."""
    strict = _exponents(joint) | solving(joint, facts)
    _, factors = rows_of_products(joint, facts)
    means, sums = weighted_means(joint, facts)
    in_backward = factors | matrices(joint, facts) | sums
    return {
        node: tuple(_operand_uses(node, facts, node in strict, in_backward, means) if node in joint.backward
                    else _operand_uses(node, facts, node in strict, factors, ()))
        for node in joint.gm.graph.nodes if node.op == "call_function"
    }  # fmt: skip


def _exponents(joint: Joint) -> set[fx.Node]:
    """Backward's operators whose result ends in an exponential, as in the gradient of logcumsumexp.

    That gradient is ``exp(log|g| - result + ...)``: an error in a forward value beside ``log|g|`` multiplies it.
    """
    found: set[fx.Node] = set()
    for user in reversed(joint.gm.graph.nodes):
        if user not in joint.backward or user.op != "call_function":
            continue
        if is_exponential(user) or (user in found and kind_of(user) is not Kind.LOGARITHM):
            found.update(part for part in user.all_input_nodes if part in joint.backward)
    return found


def _operand_uses(
    node: fx.Node, facts: Facts, strict: bool, exact: Collection[fx.Node], means: Collection[fx.Node]
) -> Iterator[tuple[fx.Node, Use]]:
    """Every operand and its use; ``strict``: the node needs all of them exactly, otherwise those in ``exact``."""
    for position, operand in operands(node):
        if operand not in facts.ops:
            continue  # a gradient
        value = element_of(operand)
        if value is None or not is_float(value.dtype):
            yield operand, Use.DECISION if value is not None else Use.SENSITIVE
        elif strict or operand in exact:
            yield operand, max(Use.SENSITIVE, _operand_use(node, position, operand, facts))
        elif operand in means:
            yield operand, max(Use.ATTENTION, _operand_use(node, position, operand, facts))
        else:
            yield operand, _operand_use(node, position, operand, facts)


def _operand_use(node: fx.Node, position: int, operand: fx.Node, facts: Facts) -> Use:
    """How the node depends on a float operand: the table, refined by what is known of the operand."""
    use = table_use(node, position)
    if use is None:
        return Use.SENSITIVE
    if use == Use.DECISION:
        return use
    name, kind = op_name(node), kind_of(node)
    if (value := element_of(operand)) is not None and value.dtype.is_complex and use != Use.LINEAR:
        return use if kind is Kind.PRODUCT else Use.SENSITIVE  # what is smooth on the real line has poles off it
    low, high = facts.bounds.get(operand, EVERYTHING)
    if kind is Kind.PRODUCT:
        return Use.SMOOTH if _multiplies_activations(node, operand, facts) else Use.LINEAR
    if name == "aten.div" and position == 1:
        return Use.SMOOTH if low >= 1 or high <= -1 else Use.SENSITIVE
    if name in ("aten.log", "aten.sqrt", "aten.rsqrt", "aten.reciprocal"):
        return Use.SMOOTH if low >= 1 else Use.SENSITIVE
    if name == "aten.log1p":
        return Use.SMOOTH if low >= 0 else Use.SENSITIVE
    if kind is Kind.POWER:
        power = 2 if name == "aten.square" else argument(node, "exponent")
        return Use.LINEAR if power == 1 else Use.SMOOTH if power in (2, 3) else Use.SENSITIVE
    if facts.ceilings.get(node, INF) <= BOUNDED:
        return Use.SENSITIVE if _is_steep(operand, facts) else Use.SMOOTH
    if name == "aten.exp":
        return _exp_use(node, operand, high, facts)
    if kind is Kind.SIGMOID and _is_steep(operand, facts):
        return Use.SENSITIVE
    return use


def _multiplies_activations(node: fx.Node, operand: fx.Node, facts: Facts) -> bool:
    """Whether the product has another factor that is as large and as approximate as this one."""
    others = [n for n in node.all_input_nodes if n is not operand]
    if not others:
        return True
    size = facts.sizes.get(operand)
    return any(
        other in facts.depends and other not in facts.free and size is not None and facts.sizes.get(other) == size
        for other in others
    )


def _exp_use(node: fx.Node, operand: fx.Node, high: float, facts: Facts) -> Use:
    if high <= 0:
        if steepness(operand, facts, unknown=math.inf) > STEEP:
            return Use.SENSITIVE
        # a score less its maximum; of scaled scores, chosen by the sign of the scale
        if op_name(operand) not in ("aten.sub", "aten.where"):
            return Use.SMOOTH
        # an error in it is multiplied by the exponential, and forward's statistics do not know it: of a token that is
        # sure, 1 less its softmax would be all error
        return Use.SENSITIVE
    # exp(x) that only ever meets the world in log1p, or with 1 + exp(x) below a fraction bar: a softplus, a sigmoid.
    squashed = all(op_name(u) == "aten.log1p" or _is_half_of_quotient(u, node) for u in node.users)
    return Use.SMOOTH if squashed and not _is_steep(operand, facts) else Use.SENSITIVE


def _is_steep(operand: fx.Node, facts: Facts) -> bool:
    """Whether a sigmoid of the operand is too steep for it to be coded."""
    return steepness(operand, facts, unknown=1.0) > STEEP_SIGMOID


def _is_half_of_quotient(part: fx.Node, exponential: fx.Node) -> bool:
    """Whether a part is read by quotients by 1 + exp(x) alone: as their divisor, or as a multiple of exp(x)."""
    divisor = _is_one_more(part) and exponential in part.all_input_nodes
    if not divisor and op_name(part) != "aten.mul":
        return op_name(part) == "aten.div" and _divides_by_one_more(part, exponential)
    return all(
        op_name(user) == "aten.div" and argument(user, 0) is not argument(user, 1)
        and (argument(user, 1) is part if divisor else _divides_by_one_more(user, exponential))
        for user in part.users
    )  # fmt: skip


def _divides_by_one_more(quotient: fx.Node, exponential: fx.Node) -> bool:
    divisor = argument(quotient, 1)
    return isinstance(divisor, fx.Node) and _is_one_more(divisor) and exponential in divisor.all_input_nodes


def steepness(node: fx.Node, facts: Facts, *, unknown: float) -> float:
    """How many times an error in what the node is cheaply made of, at most, shows in the node.

    A square in exp(-s * x * x) counts as the root of 2 * s, one over the deviation of this Gaussian in x.

    Args:
        unknown: what a factor counts as that has no bounds, such as a parameter; of what is squared, as 1.
    """
    scale = most = 1.0
    while node in facts.depends and node not in facts.free and is_cheap(node):
        name, (large, others) = facts.ops[node], _factors(node, facts)
        if large is None:
            break
        if kind_of(node) is Kind.POWER or (name == "aten.mul" and not others):
            scale, unknown = math.sqrt(2 * scale), 1.0
        elif any(other in facts.statistics for other in others if isinstance(other, fx.Node)):
            break  # normalized: whatever it was multiplied by before, it is about as large as 1
        elif name in ("aten.mul", "aten.div"):
            scale *= math.prod(_size_of(other, facts, unknown, inverse=name == "aten.div") for other in others)
        elif uses_of(node)[0] is Use.SENSITIVE:
            break
        node, most = large, max(most, scale)
    return most


def _factors(node: fx.Node, facts: Facts) -> tuple[fx.Node | None, list[object]]:
    """The operand that a cheap operator is followed along, the largest that training moves, and its other arguments."""
    moving = [part for part in node.all_input_nodes if part in facts.depends and part in facts.sizes]
    large = max(moving, key=lambda part: (part not in facts.free, facts.sizes[part]), default=None)
    return large, [part for part in node.args if part is not large]


def _size_of(factor: object, facts: Facts, unknown: float, *, inverse: bool) -> float:
    """The largest number that a factor (or divisor) multiplies by."""
    if isinstance(factor, fx.Node):
        low, high = facts.bounds[factor]
    elif isinstance(factor, (int, float)):
        low = high = factor
    else:
        return 1.0
    if inverse:
        return unknown if low <= 0 <= high else 1 / min(abs(low), abs(high))
    largest = max(abs(low), abs(high))
    return largest if math.isfinite(largest) else unknown


def _is_one_more(node: fx.Node) -> bool:
    """Whether the node adds a number of at least 1."""
    numbers = [a for a in (argument(node, 0), argument(node, 1)) if isinstance(a, (int, float))]
    return op_name(node) == "aten.add" and is_plain(node) and any(number >= 1 for number in numbers)


def is_weights(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is a softmax: exp(...) over its own sum, whatever was subtracted or multiplied before.

    Attention under a mask puts zeros into the rows that it hides wholly: where(hidden, 0, softmax).
    """
    name = facts.ops[node]
    if name == "aten.where":
        _, hidden, shown = arguments(node)
        return isinstance(shown, fx.Node) and _is_zero(hidden, facts) and is_weights(shown, facts)
    exponential, total = (argument(node, 0), argument(node, 1)) if name == "aten.div" else (None, None)
    if not isinstance(exponential, fx.Node) or not isinstance(total, fx.Node):
        return name == "aten._softmax"
    return op_name(exponential) == "aten.exp" and op_name(total) == "aten.sum" and argument(total, 0) is exponential


def _is_zero(value: object, facts: Facts) -> bool:
    return facts.bounds.get(value) == (0, 0) if isinstance(value, fx.Node) else value == 0


def is_softmax_output(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is a softmax, exp(log_softmax), or exp(x - max) on the way to one."""
    if is_weights(node, facts):
        return True
    name = facts.ops[node]
    if name == "aten.div" and isinstance(dividend := argument(node, 0), fx.Node):
        node, name = dividend, facts.ops[dividend]
    if name != "aten.exp":
        return False
    shifted = argument(node, 0)
    return facts.ops[shifted] == "aten.sub" and facts.bounds[shifted][1] <= 0


# --- the way to the gradients --------------------------------------------------------------------


def asked_by_backward(
    joint: Joint, facts: Facts, reads: Reads, carried: Mapping[fx.Node, fx.Node]
) -> dict[fx.Node, Asked]:
    """What backward asks of each forward value.

    Args:
        carried: operators whose decision on an operand can come out of a code, and that operand: they leave it to
            the plan to insist on exactness where it does not.
    """
    gradients = {n for n in joint.outputs[1] if isinstance(n, fx.Node)}
    found: dict[fx.Node, Asked] = {}
    for node in reversed(list(joint.forward_values)):
        demand: Use | None = Use.DECISION if node in gradients else None
        every, why = demand, "it is itself a gradient" if demand is not None else ""
        weights, strict = False, None
        for user in node.users:
            own = user in joint.backward
            rerun = not own and (user in facts.again or user in facts.pointwise) and found[user].every is not None
            if user.op != "call_function" or not (own or rerun):
                continue
            use = max(use for source, use in reads[user] if source is node)
            if carried.get(user) is node:
                use = Use.LINEAR
            inherited: Asked | None = None
            if own:
                demand = use if demand is None else max(demand, use)
            elif use >= Use.SENSITIVE:
                # only an exact copy serves this user; an approximate one may serve the others
                strict = (use, _in_words(use, user))
                continue
            else:
                downstream = found[user].every
                if downstream is not None and use < downstream < Use.SENSITIVE:
                    use, inherited = downstream, found[user]
            if every is None or use > every:
                every, why = use, inherited.why if inherited else _in_words(use, user)
                weights = inherited is not None and inherited.weights
        if every is None and strict is not None:
            every, why = strict
        if every is not None and every < Use.SOFTMAX and is_softmax_output(node, facts):
            every, why, weights = Use.SOFTMAX, "output of a softmax", True
        found[node] = Asked(demand, every, why, weights)
    return found


def _in_words(use: Use, user: fx.Node) -> str:
    known = table_use(user, 0) is not None
    return f"{use.name.lower()} in {op_name(user)}" if known else f"unknown operator {op_name(user)}"


def reaches(joint: Joint, facts: Facts) -> dict[fx.Node, Reach]:
    """Per forward node that backward reads: does an error in it end in one gradient or in many?"""
    many = -1
    ends: dict[fx.Node, int] = {n: i for i, n in enumerate(joint.outputs[1]) if isinstance(n, fx.Node)}
    for node in reversed(list(joint.gm.graph.nodes)):
        end = ends.get(node)
        for user in node.users:
            if user in ends and (user in joint.backward or user in facts.again or user in facts.pointwise):
                end = ends[user] if end in (None, ends[user]) else many
        if end is not None:
            ends[node] = end
    return {
        node: Reach.CHAIN if ends[node] == many else Reach.TERMINAL for node in joint.forward_values if node in ends
    }
