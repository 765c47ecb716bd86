"""The picture of real peaks: for each model, the step's time over its peak, a point for each system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.peaks.measure import Row
from tools.peaks.models import MODELS, SYSTEMS

COLUMNS = 5
SLOWEST = 1.8  # times plain torch.compile's step; what takes longer is drawn at the edge
OURS, OTHERS = "#0b6e4f", "#8a8f98"
MARKS = dict(zip(SYSTEMS, "osvdP*XhDo^"[: len(SYSTEMS)], strict=False))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws all models that were measured; gradients that remain after a step are the dotted line."""
    names = [model for model in MODELS if any(row.model == model and row.seconds for row in rows)]
    if not names:
        return
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        height = math.ceil(len(names) / COLUMNS)
        figure = Figure(figsize=(2.5 * COLUMNS, 2.3 * height + 0.6), layout="constrained")
        grid = figure.subplots(height, COLUMNS, squeeze=False)
        for at, axes in enumerate(grid.flat):
            if at < len(names):
                _panel(axes, names[at], {row.system: row for row in rows if row.model == names[at]})
            else:
                axes.axis("off")
        drawn = {}
        for axes in grid.flat:
            handles, labels = axes.get_legend_handles_labels()
            drawn |= dict(zip(labels, handles, strict=True))
        figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=5, frameon=False)
        figure.supxlabel("real peak, of plain torch.compile's")
        figure.supylabel("step, of plain torch.compile's")
        figure.savefig(path, dpi=110, format="png")


def _panel(axes: Axes, model: str, found: dict[str, Row]) -> None:
    plain, ours = found["plain"], []
    for system, row in found.items():
        if not row.seconds or not row.peak:
            continue
        time = min(median(own / base for own, base in zip(row.seconds, row.plain_seconds, strict=True)), SLOWEST)
        mine = SYSTEMS[system].options is not None
        ours += [(row.peak / plain.peak, time)] if mine else []
        axes.scatter(
            row.peak / plain.peak, time, s=36, marker=MARKS[system], color=OURS if mine else OTHERS, zorder=3,
            label=SYSTEMS[system].title,
        )  # fmt: skip
    axes.plot(*zip(*sorted(ours), strict=True), color=OURS, linewidth=1)
    axes.axvline(plain.kept / plain.peak, color=OTHERS, linestyle=":", linewidth=1)
    axes.set_title(model, weight="bold")
    axes.set_xlim(0, 1.1)
    axes.set_ylim(0.8, SLOWEST + 0.05)
