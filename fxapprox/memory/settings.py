"""What each step down in memory costs: points of peak, time and error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fxapprox.memory.timeline import Timeline, joined
from fxapprox.options import Options

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
