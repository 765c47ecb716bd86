"""The table of real peaks: what all models take in each system, and for each model all that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tools.harness import head, line
from tools.peaks.measure import Row
from tools.peaks.models import MODELS, SYSTEMS

MIB = 2**20
HEAD = (
    "system|real peak, MiB|of plain|gradients, of plain's peak|gradient error|step, of plain's|predicted, MiB|"
    "predicted / real|notes"
)
ABOUT = """\
Real peak of a training step (forward and backward) by the allocator, compiled by Inductor, as a part of plain
torch.compile's. Parameters and inputs are not counted, gradients are. `python -m tools.peaks --out DIR`
"""


def table(rows: Sequence[Row]) -> str:
    """A row for each model, then a section for each."""
    models = [model for model in MODELS if any(row.model == model for row in rows)]
    titles = [system.title for system in SYSTEMS.values() if system is not SYSTEMS["plain"]]
    lines = [ABOUT, head("model", "plain, MiB", *titles, "aim", notes=1)]
    lines += [_summary(model, rows) for model in models]
    return "\n".join([*lines, "", *(_section(model, rows) for model in models)])


def _found(model: str, rows: Sequence[Row]) -> dict[str, Row]:
    return {row.system: row for row in rows if row.model == model}


def _summary(model: str, rows: Sequence[Row]) -> str:
    """Peaks alone."""
    found = _found(model, rows)
    plain = found.get("plain")
    base = plain.peak if plain else 0
    cells = [_ratio(row.peak, base) if (row := found.get(s)) else "" for s in SYSTEMS if s != "plain"]
    return line(model, _mib(base), *cells, MODELS[model].aim or "-")


def _section(model: str, rows: Sequence[Row]) -> str:
    """All of one model."""
    found = _found(model, rows)
    lines = [f"## {model}", "", f"{MODELS[model].about}.", "", head(*HEAD.split("|"), notes=1)]
    lines += [line(*_cells(found[system], found)) for system in SYSTEMS if system in found]
    return "\n".join([*lines, ""])


def _cells(row: Row, found: dict[str, Row]) -> list[str]:
    title, plain = SYSTEMS[row.system].title, found.get("plain")
    if row.failed:
        return [title, *["-"] * 7, row.failed.replace("|", "/")]
    base, predicted = plain.peak if plain else 0, row.predicted
    if row.system == "plain":
        predicted = next((other.predicted_plain for other in found.values() if other.predicted_plain), None)
    notes = [row.plan] if row.plan else []
    if plain and (other := _other_loss(row, plain)):
        notes.append(other)
    return [
        title,
        _mib(row.peak),
        _ratio(row.peak, base),
        _ratio(row.kept, base),
        f"{row.gradient_error:.2%}",
        _time(row),
        _mib(predicted or 0),
        f"{predicted / row.peak:.3f}" if predicted else "-",
        "; ".join(notes).replace("|", "/"),
    ]


def _other_loss(row: Row, plain: Row) -> str:
    """Of a loss that is not plain's, with rounding in bfloat16 allowed for: other random numbers, or wrong."""
    own, other = (float.fromhex(r.loss) if r.loss else 0.0 for r in (row, plain))
    return "" if abs(own - other) <= 1e-2 * abs(other) else f"loss {own:.3f} for {other:.3f}"


def _mib(count: int) -> str:
    return f"{count / MIB:.1f}" if count else "-"


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if part and whole else "-"


def _time(row: Row) -> str:
    """Median, lowest and highest over plain's step in the same round."""
    ratios = [own / plain for own, plain in zip(row.seconds, row.plain_seconds, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"
