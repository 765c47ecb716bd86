"""The zoo's table as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from tools.zoo.rows import Row, Setting
from tools.zoo.verdict import FAR_OFF, LEFT_ALONE, WORST, summary, wrong

HEAD = (
    "model", "lowering", "precision", "batch", "bits", "loss", "gradient error", "worst", "stored", "exact",
    "real peak", "time", "warnings", "graphs", "notes",
)  # fmt: skip
LEGEND = """\
Each row is one training step beside that of plain torch.compile with the same weights, inputs and seed, on one thread.
Stored, exact, real peak and time: ours by torch.compile's. Stored: bytes that the autograd graph holds after forward,
by a walk of it; exact: the same of the exact plan. Loss: "same" is bit for bit. Gradient error: relative, all
parameters in one vector; worst: of the single parameter that is the farthest off, among those with a 100,000th of the
gradient's norm (a 256th in bf16). Lowering "eager" runs both sides' graphs operator by operator; its times say little.
Batch "dynamic": compiled at one batch, measured at another. Warnings: those that torch.compile does not give. Graphs:
with "+ n breaks" where Dynamo made several.
"""
WIDEST = 160  # letters of a warning or a note


def markdown(rows: Sequence[Row]) -> str:
    """Summary, what is wrong, and all rows."""
    rows = sorted(rows, key=lambda row: row.setting)
    same = {row.setting for row in rows if row.same_loss}
    parts = ["# The zoo", LEGEND, "\n".join(f"- {line}" for line in summary(rows)) + "\n"]
    if marked := [row for row in rows if wrong(row)]:
        parts += [
            "## Something is wrong\n",
            *(f"- {_name(row.setting)}: {'; '.join(wrong(row))}" for row in marked),
            "",
        ]
    parts += ["## All rows\n", _line(HEAD), _line(["---"] * len(HEAD))]
    return "\n".join([*parts, *(_line(_cells(row, same)) for row in rows), ""])


def _name(setting: Setting) -> str:
    return f"{setting.model}, {setting.bits} bits, {setting.precision}, {setting.batch}, {setting.lowering}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cells(row: Row, same: Collection[Setting]) -> list[str]:
    setting = row.setting
    start = [setting.model, setting.lowering, setting.precision, setting.batch, setting.bits]
    if row.failed:
        return [*start, *[""] * (len(HEAD) - 6), _short(f"failed ({row.blame}): {row.failed}")]
    error, worst = ("none" if off is None else _percent(off) for off in (row.gradient_error, row.worst))
    return [
        *start, _loss(row), error, worst, _ratio(row.stored, row.baseline_stored),
        _ratio(row.exact_stored, row.baseline_stored), _ratio(row.peak, row.baseline_peak),
        _ratio(row.seconds, row.baseline_seconds), _warnings(row),
        f"{row.graphs}" + (f" + {row.breaks} breaks" if row.breaks else ""), _short("; ".join(_notes(row, same))),
    ]  # fmt: skip


def _percent(error: float) -> str:
    return "0" if error == 0 else f"{error:.2%}" if error >= 1e-4 else f"{error:.0e}"


def _loss(row: Row) -> str:
    if row.same_loss:
        return "same"
    return "other" if row.loss_change is None else f"{row.loss_change:.0e} off"


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs else "-"


def _warnings(row: Row) -> str:
    return f"{len(row.warnings)}: {_short(row.warnings[0])}" if row.warnings else "0"


def _notes(row: Row, same: Collection[Setting]) -> list[str]:
    """What is odd about a row: what is wrong, why nothing was compressed, why a loss differs."""
    model = row.setting.model
    found = [*wrong(row), *([row.note] if row.note else [])]
    found += [FAR_OFF[model]] if model in FAR_OFF and row.worst and row.worst > WORST.get(row.setting.bits, 1.0) else []
    found += [LEFT_ALONE[model]] if model in LEFT_ALONE and row.fallbacks else []
    eager = replace(row.setting, lowering="eager")
    if not (row.same_loss or row.note) and row.setting.lowering == "inductor" and eager in same:
        found.append("the same loss when run operator by operator: Inductor fuses, and rounds, otherwise")
    if row.recompiled:
        found.append(
            f"{row.recompiled} graphs compiled anew at the second batch, {row.baseline_recompiled} by torch.compile"
        )
    return found


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
