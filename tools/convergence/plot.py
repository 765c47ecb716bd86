"""A picture for each task: the loss held back, and the gap to the reference, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.convergence.arms import ARMS
from tools.convergence.records import Run
from tools.convergence.results import by_arm, gap, references
from tools.convergence.statistics import difference
from tools.convergence.tasks import TASKS

DASHES = {"reference": "--", "claim": "-", "control": "-.", "noise": ":", "comparison": (0, (5, 1))}
COLOURS = dict(zip(ARMS, mpl.colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draws a group of runs that may be paired."""
    plain = references(runs)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for arm, own in by_arm(runs).items():
            draw(left, arm, own)
            if pairs := [(run, plain[run.seed]) for run in own if run.seed in plain]:
                draw_gap(right, arm, pairs)
        left.set(title="loss held back, mean over seeds", xlabel="step")
        right.set(title="less that of torch.compile, 95% interval", xlabel="step")
        for axes in (left, right):
            axes.grid(alpha=0.25, linewidth=0.6)
        left.legend(frameon=False, fontsize=8)
        figure.suptitle(TASKS[runs[0].task].about, weight="bold")
        figure.savefig(path, dpi=130, format="png")


def draw(axes: Axes, arm: str, runs: Sequence[Run]) -> None:
    """One arm's mean curve."""
    columns = list(zip(*([point.loss for point in run.curve] for run in runs), strict=True))
    _line(axes, arm, [point.step for point in runs[0].curve], [fmean(column) for column in columns])


def draw_gap(axes: Axes, arm: str, pairs: Sequence[tuple[Run, Run]]) -> None:
    """One arm's mean gap, and the interval around it."""
    steps = [point.step for point in pairs[0][0].curve]
    found = [difference(column) for column in zip(*(gap(a, b) for a, b in pairs), strict=True)]
    _line(axes, arm, steps, [at.mean for at in found])
    low, high = [at.low for at in found], [at.high for at in found]
    axes.fill_between(steps, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)


def _line(axes: Axes, arm: str, steps: Sequence[int], values: Sequence[float]) -> None:
    style = {"color": COLOURS[arm], "linestyle": DASHES[ARMS[arm].role], "linewidth": 1.4}
    axes.plot(steps, values, label=ARMS[arm].about, **style)  # type: ignore[arg-type]
