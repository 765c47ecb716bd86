"""A benchmark as a table for a terminal, as Markdown, and as a picture."""

from __future__ import annotations

import math
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fxapprox.bench.records import Bench, Record, middle, spread
from fxapprox.bench.systems import SYSTEMS
from fxapprox.errors import FxApproxError
from fxapprox.files.written import write_file

MIB = 2**20
HEAD = ("stored,\nMiB", "alive,\nMiB", "peak,\nMiB", "peak\nratio", "step\ntime", "half of\nrounds", "compile\ntime",
        "gradient\nerror", "first\nloss")  # fmt: skip
_MEMORY = (
    "Stored: held by the autograd graph. Alive: allocated in forward, not freed after it. Peak: of the whole step."
)
COLOURS = ("#1b1b1b", "#7f7f7f", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2")


def table(bench: Bench) -> Table:
    """For a terminal; failures are in the caption."""
    failures = [f"{SYSTEMS[r.system].label}: {r.failed}" for r in bench.records if r.failed]
    found = Table(title=_title(bench), caption="\n".join([_note(bench), *failures]), box=SIMPLE_HEAD, pad_edge=False)
    found.add_column("")
    for name in HEAD:
        found.add_column(name, justify="right")
    for record in bench.records:
        found.add_row(SYSTEMS[record.system].label, *cells(bench, record))
    return found


def markdown(bench: Bench) -> str:
    """As a section of a document."""
    lines = [f"## {bench.target}", "", f"{_where(bench)}.", ""]
    lines.append(_markdown_line(["system", *(name.replace("\n", " ") for name in HEAD)]))
    lines += ["|---" + "|---:" * len(HEAD) + "|"]
    for record in bench.records:
        own = [record.failed.replace("|", "/"), *[""] * (len(HEAD) - 1)] if record.failed else cells(bench, record)
        lines.append(_markdown_line([SYSTEMS[record.system].label, *own]))
    return "\n".join([*lines, "", _note(bench), ""])


def cells(bench: Bench, record: Record) -> list[str]:
    """The columns of ``HEAD`` for one system; a failed one has none."""
    base, ratios = bench.baseline, bench.step_ratios(record)
    if record.failed:
        return ["failed", *[""] * (len(HEAD) - 1)]
    low, high = spread(ratios)
    return [
        f"{record.stored_bytes / MIB:.1f}",
        f"{record.alive_bytes / MIB:.1f}",
        f"{record.peak_bytes / MIB:.1f}",
        f"{record.peak_bytes / base.peak_bytes:.2f}" if base else "-",
        f"{middle(ratios):.2f}x" if ratios else f"{1000 * middle(record.step_seconds):.0f} ms",
        f"{low:.2f}-{high:.2f}" if ratios else "-",
        f"{record.compile_seconds / base.compile_seconds:.2f}x" if base and SYSTEMS[record.system].compiled else "-",
        error_text(record),
        "-" if base is None else "same bits" if record.loss == base.loss else _distance(record, base),
    ]


def error_text(record: Record) -> str:
    """How far the gradients are off; "not finite": some are NaN or infinite where the reference's are not."""
    if record.gradient_error is None:
        return "-"
    return f"{record.gradient_error:.2%}" if math.isfinite(record.gradient_error) else "not finite"


def plot(bench: Bench, path: Path) -> None:
    """Step time against real peak, a line for each family of systems.

    Raises:
        FxApproxError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FxApproxError("the picture needs matplotlib: pip install 'fxapprox[plot]'") from error
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    families: dict[str, list[Record]] = {}
    for record in bench.records:
        if bench.step_ratios(record):
            families.setdefault(SYSTEMS[record.system].family, []).append(record)
    for (family, records), colour in zip(families.items(), COLOURS, strict=False):
        records.sort(key=lambda r: r.peak_bytes)
        peaks, times = [r.peak_bytes / MIB for r in records], [middle(bench.step_ratios(r)) for r in records]
        axes.plot(peaks, times, "o-", color=colour, label=family, markersize=5, linewidth=1.4)
        for record, peak, time in zip(records, peaks, times, strict=True):
            if len(records) > 1:
                name = SYSTEMS[record.system].label.partition(", ")[2] or "default"
                axes.annotate(name, (peak, time), xytext=(4, 5), textcoords="offset points", fontsize=7, color=colour)
    axes.set(xlabel="real peak of a training step, MiB", ylabel="step time / torch.compile's", title=bench.target)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25, linewidth=0.6)
    if families:
        axes.legend(frameon=False, fontsize=8)
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format=temporary.suffix[1:] or "png"))


def _markdown_line(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _title(bench: Bench) -> str:
    return f"{bench.target}. {_where(bench)}"


def _where(bench: Bench) -> str:
    return f"One training step on {bench.device}, torch {bench.torch}, {bench.threads} threads"


def _note(bench: Bench) -> str:
    base = bench.baseline
    if base is None:
        return f"Gradient error against {bench.reference}; torch.compile was not run: no ratios."
    rounds, milliseconds = len(base.step_seconds), 1000 * middle(base.step_seconds)
    return (
        f"{_MEMORY} Ratios to torch.compile: a step of {milliseconds:.0f} ms, compiled in {base.compile_seconds:.0f} s."
        f" Step time: median of {rounds} rounds; in each, all take two steps in turn, the second timed."
        f" Gradient error against {bench.reference}."
    )


def _distance(record: Record, base: Record) -> str:
    """How far apart two losses are."""
    own, other = float.fromhex(record.loss), float.fromhex(base.loss)
    return f"{abs(own - other) / abs(other):.0e} off" if math.isfinite(own) and other else "differs"
