"""The results of the budget benchmark: table.md and budget.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.budget.models import MODELS, SYSTEMS
from tools.budget.records import Record, of, rises
from tools.harness import head, line, write_atomically, write_text

MIB = 2**20
COLOURS = {"plain": "#7f7f7f", "fxapprox": "#0072b2", "torch-budget": "#d55e00", "checkpoint": "#009e73"}
MARKERS = {"plain": "s", "fxapprox": "o", "torch-budget": "^", "checkpoint": "D"}
HEAD = "system|setting|stored, MiB|real peak, MiB|of plain|predicted, MiB|off by|gradient error|loss|compile, s|plan"


def write_results(records: Sequence[Record], out: Path) -> None:
    """A section for each model, and the curves of all."""
    names = [model for model in MODELS if any(r.model == model for r in records)]
    write_text(out / "table.md", "\n".join(section(model, [r for r in records if r.model == model]) for model in names))
    shown = [model for model in names if of(records, model, "plain")]
    if shown:
        write_atomically(out / "budget.png", lambda path: plot(records, shown, path))


def section(model: str, records: Sequence[Record]) -> str:
    """The table of one model; ratios are to plain torch.compile."""
    plain = next(iter(of(records, model, "plain")), None)
    lines = [f"## {model}", "", head(*HEAD.split("|"), texts=2, notes=1)]
    for system in SYSTEMS:
        own = [r for r in records if r.system == system]
        lines += [line(*cells(record, plain)) for record in own]
    for system in ("fxapprox", "torch-budget"):
        own = of(records, model, system)
        if own:
            lines += ["", f"{SYSTEMS[system]}: {monotone(own)}."]
    return "\n".join([*lines, ""])


def monotone(records: Sequence[Record]) -> str:
    """Whether the real peak falls with the budget, in words."""
    found = [f"from {a.setting} to {b.setting} by {b.peak / a.peak - 1:.2%}" for a, b in rises(records)]
    return "the real peak rises " + ", ".join(found) if found else "the real peak never rises as the budget falls"


def cells(record: Record, plain: Record | None) -> list[str]:
    """The cells of one record."""
    if record.failed:
        return [SYSTEMS[record.system], record.setting, f"failed: {record.failed.replace('|', '/')}", *[""] * 8]
    predicted = record.predicted
    return [
        SYSTEMS[record.system],
        record.setting or "-",
        f"{record.stored / MIB:.1f}",
        f"{record.peak / MIB:.1f}",
        f"{record.peak / plain.peak:.3f}" if plain else "-",
        f"{predicted / MIB:.1f}" if predicted is not None else "-",
        f"{predicted / record.peak - 1:+.1%}" if predicted is not None else "-",
        f"{record.gradient_error:.2%}",
        "-" if plain is None else "same" if record.loss == plain.loss else "other",
        f"{record.compile_seconds:.0f}",
        f"as {record.measured_at}" if record.measured_at else record.plan,
    ]


def plot(records: Sequence[Record], names: Sequence[str], path: Path) -> None:
    """For each model, above: real peak over budget; below: gradient error over real peak."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4 * len(names), 6), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False)
        for column, model in enumerate(names):
            own = [r for r in records if r.model == model]
            _peaks(axes[0][column], own)
            _errors(axes[1][column], own)
            axes[0][column].set_title(model, weight="bold")
        axes[0][0].legend(frameon=False)
        axes[1][0].legend(frameon=False)
        figure.savefig(path, dpi=150, format="png")


def _peaks(axes: Axes, records: Sequence[Record]) -> None:
    (plain,) = of(records, records[0].model, "plain")
    axes.plot([0, 1], [0, 1], ":", color="#7f7f7f", linewidth=1, label="asked for")
    for system in ("fxapprox", "torch-budget"):
        own = of(records, plain.model, system)
        budgets, peaks = [float(r.setting) for r in own], [r.peak / plain.peak for r in own]
        axes.plot(budgets, peaks, marker=MARKERS[system], color=COLOURS[system], label=SYSTEMS[system], markersize=4)
    guessed = [r for r in of(records, plain.model, "fxapprox") if r.predicted is not None]
    axes.plot(
        [float(r.setting) for r in guessed], [(r.predicted or 0) / plain.peak for r in guessed], "--",
        color=COLOURS["fxapprox"], linewidth=1, label="fxapprox, predicted",
    )  # fmt: skip
    axes.set(xlabel="budget", ylabel="real peak / plain torch.compile", xlim=(1, 0), ylim=(0, None))
    axes.grid(alpha=0.25, linewidth=0.6)


def _errors(axes: Axes, records: Sequence[Record]) -> None:
    (plain,) = of(records, records[0].model, "plain")
    for system in SYSTEMS:
        own = of(records, plain.model, system)
        axes.plot(
            [r.peak / plain.peak for r in own], [100 * r.gradient_error for r in own], MARKERS[system], markersize=4,
            color=COLOURS[system], label=SYSTEMS[system],
        )  # fmt: skip
    most = 100 * max(r.gradient_error for r in records if not r.failed)
    axes.set(xlabel="real peak / plain torch.compile", ylabel="relative gradient error, %", ylim=(-0.2, most + 0.5))
    axes.invert_xaxis()
    axes.grid(alpha=0.25, linewidth=0.6)
