"""What the budget benchmark knows of each model, system and setting: one JSON file each, and choosing among them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.harness import Failed, outcome, read_json, write_text


@dataclass(frozen=True)
class Record:
    """One setting of one system on one model.

    Attributes:
        model, system: their names.
        setting: a budget ("0.5"), the name of a way to checkpoint, or "" where there is nothing to set.
        failed: why there are no numbers, or "".
        stored: bytes held between forward and backward.
        peak: bytes by which a step raises the memory in use, gradients included.
        kept: those that are still in use at its end: gradients.
        predicted: the peak that the plan was expected to have; None: the system does not say.
        predicted_plain: the same of plain torch.compile.
        gradient_error: relative, over all parameters, against the eager model.
        loss: of the first step, in hexadecimal.
        compile_seconds: first step with compilation; kernels that were compiled before come from Inductor's cache.
        step_seconds: of the fastest step.
        plan: in one line.
        plan_key: equal for equal plans; "" where the system does not say.
        measured_at: the setting whose measurement this is, because both have the same plan.
    """

    model: str
    system: str
    setting: str
    failed: str = ""
    stored: int = 0
    peak: int = 0
    kept: int = 0
    predicted: int | None = None
    predicted_plain: int | None = None
    gradient_error: float = 0.0
    loss: str = ""
    compile_seconds: float = 0.0
    step_seconds: float = 0.0
    plan: str = ""
    plan_key: str = ""
    measured_at: str = ""

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return "--".join(part for part in (self.model, self.system, self.setting) if part)


def in_process(function: str, record: Record, seconds: float, **options: Any) -> Record:
    """The record, measured by a function of `harness` in a process of its own; a failed one if that fails."""
    found = outcome(function, (record.model, record.system, record.setting), seconds=seconds, **options)
    return replace(record, failed=found.why) if isinstance(found, Failed) else Record(**found)


def path_of(record: Record, out: Path) -> Path:
    """The record's file."""
    return out / "records" / f"{record.name}.json"


def save(record: Record, out: Path) -> None:
    """Writes the record's file."""
    path = path_of(record, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(record), indent=1) + "\n")


def saved(out: Path) -> list[Record]:
    """All records of a directory; largest budgets first."""
    return sorted((Record(**read_json(path)) for path in (out / "records").glob("*.json")), key=_order)


def _order(record: Record) -> tuple[str, str, float, str]:
    try:
        return record.model, record.system, -float(record.setting), ""
    except ValueError:
        return record.model, record.system, 0.0, record.setting


def of(records: Iterable[Record], model: str, system: str) -> list[Record]:
    """The records with numbers of a model in a system."""
    return [r for r in records if (r.model, r.system) == (model, system) and not r.failed]


def same_plan(records: Iterable[Record], plan_key: str) -> Record | None:
    """A record that was measured with this plan."""
    return next((r for r in records if r.plan_key == plan_key and not r.measured_at), None)


def refused(records: Iterable[Record], smaller: Record) -> Record | None:
    """A record with a larger budget that fxapprox refused: it names the smallest that it would not."""
    return next(
        (
            r for r in records
            if (r.model, r.system) == (smaller.model, smaller.system) == (r.model, "fxapprox")
            and "smallest budget" in r.failed and float(r.setting) > float(smaller.setting)
        ),
        None,
    )  # fmt: skip


def within(records: Iterable[Record], limit: float) -> list[Record]:
    """Those whose peak is at most this many bytes; of several with the same bytes, which have one plan, the first."""
    found = {(r.system, r.stored, r.peak): r for r in reversed(list(records)) if r.peak <= limit}
    return list(reversed(found.values()))


def rises(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Neighbours, largest budget first, of which the smaller budget has the larger peak."""
    return [(a, b) for a, b in pairwise(records) if b.peak > a.peak]
