"""The results of all runs in a directory: table.md and curves.png."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, median, stdev

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FixedLocator, MaxNLocator, NullFormatter

from tools.harness import head, line, write_atomically, write_text
from tools.train.runs import MODES, Recipe, Run, recorded_runs

MIB = 2**20
LABELS = {"plain": "torch.compile", "exact": "fxapprox exact", "8": "8 bits", "4": "4 bits", "2": "2 bits"}
COLOURS = {"plain": "#7f7f7f", "exact": "#1b1b1b", "8": "#0072b2", "4": "#d55e00", "2": "#009e73"}
TICKS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))  # of a logarithmic axis, in each decade


def write_results(out: Path, recipe: Recipe) -> None:
    """The table and the curves of all runs in the directory."""
    runs = recorded_runs(out, recipe)
    write_text(out / "table.md", table(runs))
    write_atomically(out / "curves.png", lambda path: plot(runs, path))


def by_mode(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that have begun, grouped by mode."""
    groups = {mode: [run for run in runs if run.mode == mode and run.epochs] for mode in MODES}
    return {mode: group for mode, group in groups.items() if group}


def table(runs: list[Run]) -> str:
    """A Markdown table with one row per mode; ratios are to the first row."""
    groups, recipe = by_mode(runs), runs[0].recipe
    reference = next(iter(groups.values()))[0].stored_bytes
    columns = "mode|seeds|epochs|stored, MiB|ratio|train loss|test loss|test accuracy, %|s per epoch".split("|")
    lines = [head(*columns), *(line(*cells(group, reference)) for group in groups.values())]
    note = f"ResNet-{recipe.depth}, {recipe.epochs} epochs, batch {recipe.batch}; last epoch, ± over seeds."
    return "\n".join([*lines, "", note, ""])


def cells(runs: list[Run], reference: int) -> list[str]:
    """The table's cells for the runs of one mode."""
    last = [run.epochs[-1] for run in runs]
    return [
        LABELS[runs[0].mode],
        str(len(runs)),
        str(min(epoch.epoch for epoch in last)),
        f"{runs[0].stored_bytes / MIB:.1f}",
        f"{runs[0].stored_bytes / reference:.3f}",
        spread([epoch.train_loss for epoch in last], ".4f"),
        spread([epoch.test_loss for epoch in last], ".4f"),
        spread([100 * epoch.test_accuracy for epoch in last], ".2f"),
        f"{median(epoch.seconds for run in runs for epoch in run.epochs):.1f}",
    ]


def spread(values: list[float], form: str) -> str:
    """Mean, and the sample standard deviation where there is one."""
    return format(fmean(values), form) + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def plot(runs: list[Run], path: Path) -> None:
    """Training loss and test accuracy: a line for the mean over seeds, a band from lowest to highest."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set(title="Training loss", xlabel="epoch", yscale="log")
        right.set(title="Test accuracy, %", xlabel="epoch")
        for mode, group in by_mode(runs).items():
            curve(left, mode, [[epoch.train_loss for epoch in run.epochs] for run in group])
            curve(right, mode, [[100 * epoch.test_accuracy for epoch in run.epochs] for run in group])
        label_losses(left)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(alpha=0.25, linewidth=0.6)
        right.legend(frameon=False, loc="lower right")
        figure.suptitle(f"CIFAR-10, pre-activation ResNet-{runs[0].recipe.depth}", weight="bold")
        figure.savefig(path, dpi=150, format="png")


def curve(axes: Axes, mode: str, series: list[list[float]]) -> None:
    """One mode's line and band, as far as all its seeds have come."""
    columns = list(zip(*series, strict=False))
    epochs = range(1, len(columns) + 1)
    mean = [fmean(column) for column in columns]
    dashes, marker = "--" if mode == "plain" else "-", "" if len(columns) > 1 else "o"
    axes.plot(epochs, mean, dashes, marker=marker, color=COLOURS[mode], label=LABELS[mode], linewidth=1.6)
    low, high = [min(column) for column in columns], [max(column) for column in columns]
    axes.fill_between(epochs, low, high, color=COLOURS[mode], alpha=0.15, linewidth=0)


def label_losses(axes: Axes) -> None:
    """Plain numbers on the logarithmic axis of the curves, however little or much the losses differ."""
    low, high = axes.dataLim.intervaly
    axes.update_datalim([(1, low / 1.05), (1, high * 1.05)])  # the losses of one epoch may be equal
    locator = FixedLocator(loss_ticks(*axes.get_ylim()))
    axes.yaxis.set(major_locator=locator, major_formatter="{x:g}", minor_formatter=NullFormatter())


def loss_ticks(low: float, high: float) -> list[float]:
    """The coarsest of `TICKS` with three ticks from low to high; equal steps where even the finest has fewer."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in TICKS:
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        visible = [tick for tick in ticks if low <= tick <= high]
        if len(visible) >= 3:
            return visible
    return list(AutoLocator().tick_values(low, high))
