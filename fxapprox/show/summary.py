"""The totals of a report in words; table.py has the decisions, fx.py the graphs."""

from __future__ import annotations

import math

from fxapprox.amounts import size_text
from fxapprox.ir.records import Slices
from fxapprox.ir.source import breaks_text
from fxapprox.report.data import ReportData

WIDTH = 100  # columns, where there is no terminal that has a width


def summary(report: ReportData) -> str:
    """What is stored, against what plain torch.compile would store; symbolic sizes are on a line of their own."""
    baseline, saved = (
        size_text(number) if expression.is_Integer else f"{size_text(number)} = {expression} bytes"
        for number, expression in (
            (report.baseline_bytes, report.baseline_expr),
            (report.saved_bytes, report.saved_expr),
        )
    )
    if report.fallback:
        text = f"stored exactly, as plain torch.compile does ({baseline}): {report.fallback}"
    else:
        text = f"stored for backward: {saved}; plain torch.compile: {baseline} ({_times_text(report.ratio)})"
    exact = f"if all of the values below were saved exactly: {size_text(report.exact_bytes)}"
    lines = [exact] if report.decisions else []
    return "\n".join([text, *lines, _peak_text(report), *notes(report)])


def _times_text(ratio: float) -> str:
    return f"{ratio:.2f}x less" if math.isfinite(ratio) else "all of it saved"


def notes(report: ReportData) -> list[str]:
    """What is to be said beside the totals: copies and gradients, checkpoints, a budget's choice, dynamic sizes."""
    lines = [_copies_text(report)] if report.copies else []
    lines += [_gradients_text(report)] if report.gradients else []
    lines += [_segments_text(report)] if report.segments else []
    lines += [_slices_text(part) for graph in report.graphs or (report,) for part in graph.slices]
    lines += [f"chosen by the memory budget: {report.setting}"] if report.setting else []
    lines += [
        f"graph {i} is shared by {graph.shared} compiled models, each of which stores this"
        for i, graph in enumerate(report.graphs or (report,)) if graph.shared > 1
    ]  # fmt: skip
    lines += [f"{s.label}, here {s.hint}; this graph serves {s.range_text}" for s in report.sizes]
    return [*lines, *([breaks_text(report.breaks)] if report.breaks else [])]


def unknown_text(report: ReportData) -> str:
    """Which operators nobody has described, and what that costs; "" if there are none."""
    names = ", ".join(report.unknown)
    return f"not known to fxapprox: {names}; they keep {size_text(report.unknown_bytes)} exact" if names else ""


def _peak_text(report: ReportData) -> str:
    peak, baseline = report.peak_bytes, report.baseline_peak_bytes
    ratio = f", {baseline / peak:.1f}x" if peak else ""
    rest = size_text(report.gradient_bytes)
    return (
        f"peak: {size_text(peak)}, plain torch.compile {size_text(baseline)}{ratio}; gradients and outputs alone {rest}"
    )


def _segments_text(report: ReportData) -> str:
    count, operators = len(report.segments), sum(segment.operators for segment in report.segments)
    boundaries = dict.fromkeys(name for segment in report.segments for name in segment.boundary)
    whence = f"from {', '.join(boundaries)}" if boundaries else "from the inputs"
    return f"checkpoints: backward computes {count} segment{'s' * (count > 1)} again ({operators} operators), {whence}"


def _slices_text(part: Slices) -> str:
    return (
        f"slices: {part.half} runs {len(part.operators)} operators in {len(part.names)} slices of {part.rows} rows;"
        f" {size_text(part.wide_bytes)} of values are never whole"
    )


def _copies_text(report: ReportData) -> str:
    more = size_text(report.baseline_copies_bytes)
    kept = sum(copy.bytes_after for copy in report.copies)
    own = f"this plan {size_text(kept)}" if kept else "this plan none of it"
    count = len(report.copies)
    return f"of that plain torch.compile stores {more} in channels-last copies of {count} inputs; {own}"


def _gradients_text(report: ReportData) -> str:
    what = f"{len(report.gradients)} gradients" if len(report.gradients) > 1 else "a gradient"
    size = size_text(report.early_gradient_bytes)
    return f"of that {size} in {what} that forward computes with the loss, and backward would have in memory anyway"
