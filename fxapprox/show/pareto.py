"""What each step down in memory costs, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fxapprox.amounts import size_text
from fxapprox.errors import FxApproxError
from fxapprox.files.written import write_file
from fxapprox.memory.settings import Point

MIB = 2**20


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


def plot(points: Sequence[Point], baseline: int, path: Path) -> None:
    """Draws predicted peaks against the estimates of time and error.

    Args:
        points: of ``report.pareto()``.
        baseline: plain torch.compile's predicted peak, in bytes.
        path: of the picture; its suffix says the format (png, svg, pdf).

    Raises:
        FxApproxError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FxApproxError("the picture needs matplotlib: pip install 'fxapprox[plot]'") from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    peaks = [point.peak_bytes / MIB for point in points]
    axes.plot(peaks, [100 * point.cost for point in points], color="#0072b2", marker="o", label="time and error added")
    axes.plot(peaks, [100 * point.error for point in points], color="#d55e00", linestyle=":", label="of it, error")
    for point, peak in zip(points, peaks, strict=True):
        axes.annotate(point.setting, (peak, 100 * point.cost), xytext=(4, 6), textcoords="offset points", fontsize=8)
    axes.axvline(baseline / MIB, color="#7f7f7f", linestyle="--", label="plain torch.compile")
    axes.set(xlabel="predicted peak of a training step, MiB", ylabel="percent of a step's time, and of the gradients")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format=temporary.suffix[1:] or "png"))
