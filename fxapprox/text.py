"""Reports as text: tables for people, graphs as code."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fxapprox.amounts import size_text
from fxapprox.errors import DoesNotFit
from fxapprox.user_code import breaks_text

if TYPE_CHECKING:
    from torch import fx

    from fxapprox.activation import Decision
    from fxapprox.fit import BatchFit
    from fxapprox.pareto import Point
    from fxapprox.report import Report

WIDTH = 132


def summary(report: Report) -> str:
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
        text = f"stored for backward: {saved}; plain torch.compile: {baseline} ({report.ratio:.2f}x less)"
    lines = [_peak_text(report)]
    lines += [_copies_text(report)] if report.copies else []
    lines += [_segments_text(report)] if report.segments else []
    lines += [f"chosen by the memory budget: {report.setting}"] if report.setting else []
    lines += [f"{s.label}, here {s.hint}; this graph serves {s.range_text}" for s in report.sizes]
    lines += [breaks_text(report.breaks)] if report.breaks else []
    return "\n".join([text, *lines])


def _peak_text(report: Report) -> str:
    peak, baseline = report.peak_bytes, report.baseline_peak_bytes
    ratio = f", {baseline / peak:.1f}x" if peak else ""
    return f"peak: {size_text(peak)}, plain torch.compile {size_text(baseline)}{ratio}"


def _segments_text(report: Report) -> str:
    count, operators = len(report.segments), sum(segment.operators for segment in report.segments)
    boundaries = dict.fromkeys(name for segment in report.segments for name in segment.boundary)
    whence = f"from {', '.join(boundaries)}" if boundaries else "from the inputs"
    return f"checkpoints: backward computes {count} segments again ({operators} operators), {whence}"


def _copies_text(report: Report) -> str:
    more = size_text(report.baseline_copies_bytes)
    kept = sum(copy.bytes_after for copy in report.copies)
    own = f"this plan {size_text(kept)}" if kept else "this plan none of it"
    count = len(report.copies)
    return f"not counted: {more} in channels-last copies of {count} inputs, which plain torch.compile stores; {own}"


def decisions_table(report: Report, *, limit: int | None = None) -> Table:
    """The decisions, largest first; values that neither plan stores are left out."""
    table = Table(title=Text(summary(report)), title_justify="left", title_style="bold", caption_justify="left")
    for name in ("value", "module", "shape", "class", "reach", "storage", "before", "after", "reason"):
        number = name in ("before", "after")
        fold = "fold" if name in ("value", "module", "reason") else "ellipsis"
        table.add_column(name, justify="right" if number else "left", overflow=fold, no_wrap=number)
    shown = report.decisions[:limit]
    for decision in shown:
        table.add_row(*_cells(decision))
    if hidden := len(report.decisions) - len(shown):
        table.caption = f"{hidden} smaller values not shown; --all shows them"
    return table


def _cells(decision: Decision) -> list[str]:
    return [
        decision.value,
        decision.module,
        f"{decision.dtype}[{', '.join(map(str, decision.shape))}]",
        decision.kind.value,
        decision.reach.value if decision.reach else "",
        decision.storage,
        size_text(decision.bytes_before) if decision.bytes_before else "-",
        size_text(decision.bytes_after) if decision.bytes_after else "-",
        decision.reason + (f" [{decision.source}]" if decision.source else ""),
    ]


def batches_table(memory: int, rows: Mapping[str, BatchFit | DoesNotFit]) -> Table:
    """The largest batch for each way to store, against that of the first row."""
    title = f"largest batch whose training step fits into {size_text(memory)}"
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("stored")
    for name in ("batch", "times", "needs", "one more needs"):
        table.add_column(name, justify="right", no_wrap=True)
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if isinstance(row, DoesNotFit):
            table.add_row(name, "-", "-", "-", size_text(row.needed))
            continue
        times = "-" if isinstance(first, DoesNotFit) else f"{row.batch / first.batch:.2f}"
        table.add_row(name, str(row.batch), times, size_text(row.peak_bytes), size_text(row.next_peak_bytes))
    notes = {row.fixed_because for row in rows.values() if not isinstance(row, DoesNotFit) and row.fixed_because}
    table.caption = Text("\n".join(f"searched by tracing single batches: {note}" for note in sorted(notes)))
    return table


def report_text(report: Report, *, limit: int | None = 20) -> str:
    """The report as plain text."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, no_color=True).print(decisions_table(report, limit=limit), markup=False)
    return out.getvalue()


def pareto_table(points: Sequence[Point], baseline: int) -> Table:
    """What each step down in memory costs, from ``report.pareto()``; ``baseline`` is plain torch.compile's peak."""
    table = Table(
        title=Text("what a memory budget chooses from: all predicted"), title_justify="left", title_style="bold",
        caption="time: of a step, against that without recomputation; error: of all gradients, relative",
        caption_justify="left",
    )  # fmt: skip
    for name in ("setting", "peak", "of plain torch.compile", "time", "error"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    table.add_row("plain torch.compile", size_text(baseline), "1.000", "", "")
    for point in points:
        share = f"{point.peak_bytes / baseline:.3f}" if baseline else ""
        table.add_row(point.setting, size_text(point.peak_bytes), share, f"{point.time:.2f}x", f"{point.error:.1%}")
    return table


def graph_text(gm: fx.GraphModule, title: str) -> str:
    """A graph as readable code."""
    return f"# {title}\n{gm.print_readable(print_output=False)}"


def graphs_text(reports: Sequence[Report], stages: Sequence[str]) -> str:
    """The graphs of each report at the given stages."""
    parts = []
    for i, report in enumerate(reports):
        for stage in stages:
            gm = getattr(report, stage)
            if gm is not None:
                parts.append(graph_text(gm, f"graph {i}: {stage}"))
    return "\n".join(parts)
