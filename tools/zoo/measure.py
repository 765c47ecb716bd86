"""The rows of one model: each setting's step beside that of its baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fxapprox import torch_adapter as adapter
from fxapprox.frontend.tracing import nothing_captured
from fxapprox.ir.source import described
from fxapprox.measure.gradient_error import Tally, total_error
from fxapprox.report.merge import merge
from tools.zoo.rows import Row, Setting
from tools.zoo.subject import Builder, Compilation, Outcome, Subject, baseline, rewritten

SAME_NUMBERS = 1e-3  # a loss farther off had other random numbers
# Of the norm of the whole gradient: what has less is not looked at by itself. In bfloat16, rounding alone makes such a
# gradient where the true one is 0, as that of a bias before a normalization is.
SHARE = {"fp32": 1e-5, "bf16": 2**-8}
ROUNDS = 3  # steps of each, in turns, for the median time


def rows_of(build: Builder, wanted: Iterable[Setting], *, rounds: int = ROUNDS) -> Iterator[Row]:
    """The rows of one model, in the order of ``wanted``; neighbours that differ in bits alone share a baseline.

    Whatever a model or a compiler raises becomes a row.
    """
    for shared, group in groupby(wanted, key=lambda setting: replace(setting, bits="")):
        yield from _group(build, shared, list(group), rounds)


def _group(build: Builder, shared: Setting, group: Sequence[Setting], rounds: int) -> Iterator[Row]:
    torch.compiler.reset()
    with adapter.quiet(), adapter.many_compilations():
        try:
            build()
        except Exception as error:
            yield from (Row(setting, described(error), "model") for setting in group)
            return
        try:
            plain = Subject(build, shared, baseline(shared))
            expected, compiled = plain.first()
            peak = plain.peak()
        except Exception as error:
            yield from (Row(setting, described(error), "torch.compile") for setting in group)
            return
        exact: int | None = None
        for setting in group:
            try:
                row = _row(build, setting, plain, expected, compiled, peak, rounds)
                if exact is None:
                    exact = row.stored if setting.bits == "exact" else _exact(build, shared)
                yield replace(row, exact_stored=exact)
            except Exception as error:
                yield Row(setting, described(error), "fxapprox")


def _exact(build: Builder, shared: Setting) -> int:
    """What the exact plan stores."""
    setting = replace(shared, bits="exact")
    return Subject(build, setting, rewritten(setting)).first()[0].stored


def _row(
    build: Builder,
    setting: Setting,
    plain: Subject,
    expected: Outcome,
    compiled: Compilation,
    baseline_peak: int,
    rounds: int,
) -> Row:
    own = Subject(build, setting, rewritten(setting))
    outcome, compilation = own.first(ours=True)
    found = compilation.reports
    report = merge(found) if found else None
    row = compared(setting, outcome, expected)
    peak = own.peak()
    times = [(own.seconds(), plain.seconds()) for _ in range(rounds)]
    ours, theirs = (statistics.median(each) for each in zip(*times, strict=True)) if times else (0.0, 0.0)
    return replace(
        row,
        peak=peak,
        baseline_peak=baseline_peak,
        seconds=ours,
        baseline_seconds=theirs,
        warnings=tuple(text for text in compilation.warnings if text not in compiled.warnings),
        graphs=compilation.graphs,
        breaks=len(compilation.breaks),
        recompiled=compilation.recompiled,
        baseline_recompiled=compiled.recompiled,
        held=compilation.held,
        planned=report.saved_bytes if report else None,
        baseline_planned=report.baseline_bytes if report else None,
        fallbacks=tuple(each.fallback for each in found if each.fallback),
        note=_note(own, compilation, report) or beside_eager(build, setting, outcome.loss, expected.loss),
    )


def compared(setting: Setting, found: Outcome, expected: Outcome) -> Row:
    """What a step gave beside the baseline's."""
    pairs = {name: (found.gradients[name], exact) for name, exact in expected.gradients.items()}
    strange = tuple(name for name, pair in pairs.items() if finite(pair[0]) != finite(pair[1]))
    tallies: dict[str, Tally] = {}
    for name, (own, exact) in pairs.items():
        if own is not None and exact is not None:
            tallies[name] = Tally()
            tallies[name].add(own, exact)
    error = total_error(list(tallies.values())).error
    worst, of = worst_parameter(tallies, SHARE[setting.precision])
    return Row(
        setting,
        same_loss=same_bits(found.loss, expected.loss),
        loss_change=_change(found.loss.item(), expected.loss.item()),
        same_buffers=all(same_bits(found.buffers[name], buffer) for name, buffer in expected.buffers.items()),
        gradient_error=error if error is not None and math.isfinite(error) else None,
        worst=worst,
        worst_of=of,
        strange=strange,
        stored=found.stored,
        baseline_stored=expected.stored,
    )


def worst_parameter(tallies: Mapping[str, Tally], share: float) -> tuple[float | None, str]:
    """The error of the parameter that is the farthest off, among those with a share of the gradient, and its name."""
    least = share**2 * sum(tally.exact for tally in tallies.values())
    errors = {name: total_error([tally]).error for name, tally in tallies.items() if tally.exact >= least}
    finite = {name: error for name, error in errors.items() if error is not None and math.isfinite(error)}
    name = max(finite, key=lambda name: finite[name], default="")
    return finite.get(name), name


def beside_eager(build: Builder, setting: Setting, own: Tensor, expected: Tensor) -> str:
    """Where losses differ, how far each is from eager PyTorch's, which rounds after every operator.

    Returns: "" where they are the same, or where both are far off: other random numbers were drawn.
    """
    if same_bits(own, expected):
        return ""
    eager = Subject(build, setting, lambda model: model).first()[0].loss.item()
    ours, theirs = (_change(loss.item(), eager) for loss in (own, expected))
    if ours is None or theirs is None or min(ours, theirs) > SAME_NUMBERS:
        return ""
    return f"from eager PyTorch's loss torch.compile's is {theirs:.0e} off, ours {ours:.0e}"


def finite(gradient: Tensor | None) -> bool | None:
    """Whether all of it are finite numbers; None where there is none."""
    return None if gradient is None else bool(gradient.isfinite().all())


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are the same, a NaN being equal to a NaN."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return bool((((x == y) & (x.signbit() == y.signbit())) | (x.isnan() & y.isnan())).all())


def _change(found: float, expected: float) -> float | None:
    change = abs(found - expected) / abs(expected) if expected else math.nan
    return change if math.isfinite(change) else None


def _note(own: Subject, compilation: Compilation, report: Any) -> str:
    """Why nothing was captured, or not everything, or nothing is smaller than torch.compile's."""
    if report is None:
        return " ".join(nothing_captured(own.model, (), compilation.breaks).split())
    if report.fallback:
        return report.fallback
    if compilation.breaks:
        first = compilation.breaks[0]
        return f"{first.reason} ({first.source})"
    if report.saved_bytes < report.baseline_bytes or not report.decisions:
        return ""
    largest = max(report.decisions, key=lambda decision: decision.bytes_after)
    return f"largest: {largest.value}, {largest.storage}: {largest.kind.value}, {largest.reason}"
