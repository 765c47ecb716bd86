"""What each step down in memory costs: points of peak, time and error, and a picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fxapprox.errors import FxApproxError
from fxapprox.files.written import write_file
from fxapprox.memory.timeline import Timeline, joined
from fxapprox.options import Options

MIB = 2**20
LEAST_STEP = 0.03  # of a peak: less than that may be an error of the prediction


def is_lower(peak: int, than: int) -> bool:
    """Whether one predicted peak is lower than another by more than the prediction's own error."""
    return peak <= (1 - LEAST_STEP) * than


@dataclass(frozen=True, slots=True)
class Point:
    """One setting, and what it gives.

    Attributes:
        setting: in words.
        options: it, as options.
        peak_bytes: predicted peak of a training step.
        time: estimate of a step's time, relative to that without recomputation.
        error: estimate of the relative gradient error.
        timeline: what is alive when.
    """

    setting: str
    options: Options
    peak_bytes: int
    time: float
    error: float
    timeline: Timeline

    @property
    def cost(self) -> float:
        """What is to be least: time and error that are added."""
        return self.time - 1 + self.error


def joined_points(graphs: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """The points of several graphs that have the same setting, as one; time and error are those of the worst graph.

    The peaks are left to who knows the sizes that the timelines are to be evaluated for.
    """
    return tuple(
        replace(
            same[0], peak_bytes=0, timeline=joined([point.timeline for point in same]),
            time=max(point.time for point in same), error=max(point.error for point in same),
        )
        for same in zip(*graphs, strict=True)
    )  # fmt: skip


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
