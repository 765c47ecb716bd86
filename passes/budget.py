"""One memory budget: storage bits and recomputation chosen together, for the least time and error that fits.

The settings form a ladder, cheapest first. What a setting costs is the share that it adds to a step's time plus its
relative gradient error, a percent of one for a percent of the other; both are estimates, made before anything is run.
The first setting on the ladder whose predicted peak fits the budget is taken. So a smaller budget never has a higher
peak, whatever the estimates are worth: what fits the smaller one would have fitted the larger one, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fxapprox.activation import Activation, Plan, Segment
from fxapprox.amounts import parse_bytes, size_text
from fxapprox.errors import OptionError
from fxapprox.options import Options
from fxapprox.pareto import Point, is_lower
from fxapprox.passes.allocate import DISTORTION, estimate
from fxapprox.sizes import evaluate

BACKWARD = 2.0  # how many times longer than forward backward takes


def ladder(options: Options) -> tuple[tuple[str, Options], ...]:
    """The settings to choose from, cheapest first by what they usually cost; only exact ones for ``bits=None``."""

    def setting(bits: float | None, checkpoint: bool = False) -> tuple[str, Options]:
        text = "exact" if bits is None else f"{bits:g} bits"
        chosen = {"bits": bits} if bits in (None, 8) else {"bits": "auto", "average_bits": bits}
        own = replace(options, memory_budget=None, checkpoint="sqrt" if checkpoint else None, **chosen)
        return f"{text}, checkpoints" if checkpoint else text, own

    if options.bits is None:
        return setting(None), setting(None, True)
    stored = [setting(bits) for bits in (None, 8, 6, 5, 4)]
    return *stored, setting(8, True), setting(5, True), setting(4, True), setting(3), setting(3, True), setting(2, True)


def budget_bytes(budget: float | str, baseline: int) -> int:
    """An ``Options.memory_budget`` as bytes; a fraction is one of plain torch.compile's peak."""
    return parse_bytes(budget, "memory_budget") if isinstance(budget, str) else int(budget * baseline)


def choose(
    settings: Sequence[tuple[str, Options]],
    budget: int,
    evaluate_setting: Callable[[str, Options], Point],
    *,
    baseline: int,
) -> Point:
    """The first setting that fits; those that do not lower the peak of an earlier one by more than a little are none.

    Args:
        budget: bytes.
        evaluate_setting: tries a setting.
        baseline: plain torch.compile's peak, for the message.

    Raises:
        OptionError: none fits; the message says what the smallest budget is that one fits.
    """
    least: Point | None = None
    for text, options in settings:
        point = evaluate_setting(text, options)
        if least is None or is_lower(point.peak_bytes, least.peak_bytes):
            if point.peak_bytes <= budget:
                return point
            least = point
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
