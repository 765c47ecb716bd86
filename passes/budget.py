"""One memory budget: storage bits and recomputation chosen together, for the least time and error that fits.

The settings form a ladder, cheapest first. What a setting costs is the share that it adds to a step's time plus its
relative gradient error, a percent of one for a percent of the other; both are estimates, made before anything is run.
The first rung whose predicted peak fits the budget is found, and of the settings between it and the rung before
(a part of the values in fewer bits, a part of forward computed again) the first one that fits as well is taken.

So a smaller budget never has a higher peak, whatever the estimates are worth: what fits the smaller one would have
fitted the larger one, too, and a setting in between with a lower peak than its rung is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fxapprox.amounts import parse_bytes, size_text
from fxapprox.codecs.base import DISTORTION
from fxapprox.errors import OptionError
from fxapprox.ir.records import Activation, Plan, Segment
from fxapprox.memory.settings import Point, is_lower
from fxapprox.options import Count, Options
from fxapprox.passes.allocate import estimate
from fxapprox.sizes import evaluate

BACKWARD = 2.0  # how many times longer than forward backward takes
SHARES = (0.25, 0.5, 0.75)  # of what checkpoints can take off the peak, between none and all of it


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to store and compute again: what it is called in reports, and the options for it."""

    text: str
    options: Options


@dataclass(frozen=True, slots=True)
class Rung:
    """A setting of the ladder, and those between the rung before and this one, cheapest first."""

    setting: Setting
    between: tuple[Setting, ...] = ()


def ladder(options: Options) -> tuple[Rung, ...]:
    """The settings to choose from, cheapest first by what they usually cost; only exact ones for ``bits=None``."""

    def setting(bits: float | None, checkpoint: Count | None = None) -> Setting:
        chosen = {"bits": bits} if bits in (None, 8) else {"bits": "auto", "average_bits": bits}
        again = {None: "", "sqrt": ", checkpoints"}.get(checkpoint, f", {checkpoint} of checkpoints")
        text = "exact" if bits is None else f"{bits:g} bits" if bits <= 8 else f"8 bits and exact, {bits:g} on average"
        return Setting(text + again, replace(options, memory_budget=None, checkpoint=checkpoint, **chosen))

    def stored(bits: float | None, *between: float) -> Rung:
        return Rung(setting(bits), tuple(map(setting, between)))

    def again(bits: float | None) -> Rung:
        return Rung(setting(bits, "sqrt"), tuple(setting(bits, share) for share in SHARES))

    if options.bits is None:
        return stored(None), again(None)
    first = stored(None), stored(8, 24, 16, 12), stored(6, 7), stored(5, 5.5), stored(4, 4.5)
    return *first, again(8), again(5), again(4), stored(3, 3.5), again(3), stored(2, 2.5), again(2)


def budget_bytes(budget: float | str, baseline: int) -> int:
    """An ``Options.memory_budget`` as bytes; a fraction is one of plain torch.compile's peak."""
    return parse_bytes(budget, "memory_budget") if isinstance(budget, str) else int(budget * baseline)


def choose(rungs: Sequence[Rung], budget: int, attempt: Callable[[Setting], Point], *, baseline: int) -> Point | None:
    """The cheapest setting that fits; None: plain torch.compile fits, and nothing else that loses nothing does.

    Rungs that do not lower the peak of an earlier one by more than the prediction may be wrong are passed over.

    Args:
        budget: bytes.
        attempt: tries a setting.
        baseline: plain torch.compile's peak, for the message.

    Raises:
        OptionError: none fits; the message says what the smallest budget is that one fits.
    """
    least: Point | None = None
    for rung in rungs:
        if budget >= baseline and rung.setting.options.bits is not None:
            return None
        point = attempt(rung.setting)
        if least is None or is_lower(point.peak_bytes, least.peak_bytes):
            if point.peak_bytes <= budget:
                cheaper = map(attempt, rung.between)
                return next((p for p in cheaper if point.peak_bytes <= p.peak_bytes <= budget), point)
            least = point
    if budget >= baseline:
        return None
    assert least is not None
    share = math.ceil(least.peak_bytes / max(baseline, 1) * 1000) / 1000
    raise OptionError(
        f"memory_budget: no setting has a peak of {size_text(budget)} or less. The smallest budget that can be met is"
        f" {share:g} of plain torch.compile's {size_text(baseline)}: {size_text(least.peak_bytes)},"
        f" with {least.setting}"
    )


def estimated_time(segments: Sequence[Segment], forward_flops: int) -> float:
    """A step's time with these segments, relative to that without: what is computed again, in products alone."""
    again = sum(segment.flops for segment in segments)
    return 1 + (again / forward_flops / (1 + BACKWARD) if forward_flops else 0.0)


def estimated_error(
    plan: Plan, activations: Sequence[Activation], options: Options, hints: Mapping[str, int]
) -> float:  # fmt: skip
    """The relative gradient error that a plan's codes may be expected to cause.

    Errors of values are nearly independent. Where they have been measured (``sensitivity.py``) their squares add up;
    else they are taken from the graph, as ``allocate`` does, on a scale on which 4 bits for everything give a tenth.
    """
    values = {a.name: a for a in activations}
    coded = {e.name: e.codec.bits for e in plan.stored if e.codec.bits in DISTORTION and values[e.name].approximable}
    measured = options.sensitivities.of(coded) if options.sensitivities is not None else None
    if measured is not None:
        return math.sqrt(sum(measured[name].get(bits or 8, 0.0) for name, bits in coded.items()))
    floats = [e.name for e in plan.stored if values[e.name].approximable]
    guesses = {name: estimate(values[name], evaluate(math.prod(values[name].sizes), hints)) for name in floats}
    whole = sum(guess[4] for guess in guesses.values())
    return math.sqrt(sum(guesses[n][b or 8] for n, b in coded.items()) / whole * DISTORTION[4]) if whole else 0.0
