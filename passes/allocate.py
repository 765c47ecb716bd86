"""Chooses the number of bits of each stored value under an average: where a bit buys the most.

Every value starts with the fewest bits that its class allows, and the bit that lowers the squared gradient error the
most per byte is bought first, until the average is used up (greedy on the lower convex hull of each value's error over
its size: the optimum of the problem's linear relaxation, Everett 1963; ActNN, Chen et al. 2021, section 4.2, allocates
per layer by dynamic programming). An average above eight bits leaves some values exact.
"""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fxapprox.codecs import Codec, Exact, Mask
from fxapprox.codecs.base import DISTORTION
from fxapprox.codecs.choose import FEWEST
from fxapprox.codecs.threshold import kept_dims
from fxapprox.files.sensitivity import Errors
from fxapprox.ir.records import Activation, Class, Plan, Reach, Stored
from fxapprox.options import Options
from fxapprox.passes.plan import plan_storing
from fxapprox.sizes import evaluate

WEIGHT = {Class.SMOOTH: 4.0, Class.LINEAR: 1.0, Class.ATTENTION: 0.25}


@dataclass(frozen=True, slots=True)
class Choice:
    """A stored value whose bits can be chosen.

    Attributes:
        name: of the value.
        elements: how many it has.
        errors: {bits: squared relative gradient error}.
    """

    name: str
    elements: int
    errors: Mapping[int, float]


def allocate(plan: Plan, activations: Sequence[Activation], options: Options, hints: Mapping[str, int]) -> Plan:
    """The plan with bits for each value, so that ``options.average_bits`` an element are used on the average.

    Requires: a plan for these activations, made for some uniform number of bits; a hint for each symbolic size.
    Ensures: the same values are stored; no class gets fewer bits than it needs; the same input gives the same bits.
    Changes numerics: no graph is touched.

    Warns: the average cannot be had because of what classes need, or the measured sensitivities are of another model.
    """
    values = {a.name: a for a in activations}
    entries = [entry for entry in plan.stored if adjustable(entry, values[entry.name], options)]
    elements = {entry.name: evaluate(math.prod(values[entry.name].sizes), hints) for entry in entries}
    measured = _measured(entries, options)
    choices = []
    for entry in entries:
        name = entry.name
        known = entry.codec.distortion
        errors = measured[name] if measured is not None else estimate(values[name], elements[name], known)
        at = {bits: errors[bits] for bits in levels(entry)}
        width = values[name].dtype.itemsize * 8  # type: ignore[union-attr]
        choices.append(Choice(name, elements[name], {**at, width: 0.0} if options.average_bits > 8 else at))
    bits = choose(choices, options.average_bits)
    spent = sum(bits[c.name] * c.elements for c in choices)
    total = sum(c.elements for c in choices)
    if spent > options.average_bits * total:
        warnings.warn(
            f"average_bits={options.average_bits:g} cannot be had: what the values' classes need comes to"
            f" {spent / total:.2f} bits an element",
            stacklevel=2,
        )
    return with_bits(plan, bits, activations, options, hints, "exact: the average allows it")


def with_bits(
    plan: Plan, bits: Mapping[str, int], activations: Sequence[Activation], options: Options, hints: Mapping[str, int],
    why: str,
) -> Plan:  # fmt: skip
    """The plan with these numbers of bits for its values; above 8 they are exact, ``why`` being the reason given."""
    values = {a.name: a for a in activations}
    exact = {name for name, chosen in bits.items() if chosen > 8}
    plan = _with_exact(plan, exact, activations, options, hints, why) if exact else plan
    return replace(plan, stored=tuple(_with_bits(e, values[e.name], bits.get(e.name)) for e in plan.stored))


def adjustable(entry: Stored, value: Activation, options: Options) -> bool:
    """Whether the number of bits of this entry is ours to choose."""
    codec = entry.codec
    fixed = options.policy is not None and options.policy(value) is not None
    fixed = fixed or (value.entering and options.checkpoint_bits is not None)
    return value.approximable and not fixed and codec.bits in codec.distortion


def levels(entry: Stored) -> tuple[int, ...]:
    """The numbers of bits that the entry's class allows, fewest first."""
    return tuple(bits for bits in sorted(entry.codec.distortion) if bits >= FEWEST.get(entry.kind, 8))


def choose(choices: Sequence[Choice], average_bits: float) -> dict[str, int]:
    """{value: bits}: the least error with ``average_bits`` an element; the fewest bits that there are if that is more.

    Args:
        choices: each with at least one number of bits.
    """
    bits = {choice.name: min(choice.errors) for choice in choices}
    left = sum((average_bits - bits[choice.name]) * choice.elements for choice in choices)
    steps = [(_hull(choice), choice) for choice in choices]
    heap: list[tuple[float, str, int, int]] = []

    def offer(index: int) -> None:
        step = next(steps[index][0], None)
        if step is not None:
            heapq.heappush(heap, (-step[0], steps[index][1].name, step[1], index))

    for index in range(len(steps)):
        offer(index)
    while heap:
        _, name, more, index = heapq.heappop(heap)
        price = (more - bits[name]) * steps[index][1].elements
        if price <= left:  # a smaller value may still fit where this one does not
            left -= price
            bits[name] = more
            offer(index)
    return bits


def _hull(choice: Choice) -> Iterator[tuple[float, int]]:
    """(squared error saved per bit, bits) of each step up that is worth it, best first."""
    at = min(choice.errors)
    while True:
        gains = [
            ((choice.errors[at] - error) / ((bits - at) * choice.elements), bits)
            for bits, error in choice.errors.items() if bits > at
        ]  # fmt: skip
        if not gains or max(gains)[0] <= 0:
            return
        best = max(gains)
        yield best
        at = best[1]


def _measured(entries: Sequence[Stored], options: Options) -> Errors | None:
    if options.sensitivities is None:
        return None
    measured = options.sensitivities.of(entry.name for entry in entries)
    if measured is None or any(set(levels(entry)) - measured[entry.name].keys() for entry in entries):
        warnings.warn(
            "the sensitivities were measured on another model, or with other options: bits are chosen by the graph"
            " alone; fxapprox.calibrate measures again",
            stacklevel=2,
        )
        return None
    return measured


def estimate(value: Activation, elements: int, distortion: Mapping[int, float] = DISTORTION) -> dict[int, float]:
    """{bits: squared error}, as far as the graph alone tells.

    The weights are round numbers from what calibrate found in ResNets and transformers.

    A gradient sums over positions (images, pixels, tokens), over which rounding errors average out; a derivative of a
    smooth function passes its error on in full, attention a small part; what ends in one gradient harms no other.
    """
    channels = math.prod(value.shape[d] for d in kept_dims(len(value.shape)))
    weight = WEIGHT.get(value.kind, 1.0) * (1.0 if value.reach is Reach.CHAIN else 0.25)
    return {bits: weight * error * channels / max(elements, 1) for bits, error in distortion.items()}


def _with_exact(
    plan: Plan, exact: Collection[str], activations: Sequence[Activation], options: Options, hints: Mapping[str, int],
    why: str,
) -> Plan:  # fmt: skip
    """The plan with these of its values exact; decisions that their codes carried are stored by themselves."""
    codecs = {entry.name: Exact() if entry.name in exact else entry.codec for entry in plan.stored}
    codecs |= {name: Mask() for entry in plan.stored if entry.name in exact for name in entry.predicates}
    found = plan_storing(tuple(activations), options, hints, codecs)
    return replace(found, stored=tuple(
        replace(entry, reason=why) if entry.name in exact else entry for entry in found.stored
    ))  # fmt: skip


def _with_bits(entry: Stored, value: Activation, bits: int | None) -> Stored:
    if bits is None or bits == entry.codec.bits or isinstance(entry.codec, Exact):
        return entry
    codec: Codec = replace(entry.codec, bits=bits)  # type: ignore[type-var]
    return replace(entry, codec=codec, nbytes=codec.nbytes(value.sizes, value.dtype))
