"""Step times at equal real peak: the processes stay alive and take turns, so that all of them see the same machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from tools.budget.models import SYSTEMS
from tools.budget.records import Record, of, within
from tools.harness import Process, head, line, read_json, write_text

BUDGETS = (0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
RIVALS = ("fxapprox", "torch-budget", "checkpoint")


def candidates(records: Sequence[Record], model: str) -> list[Record]:
    """Plain torch.compile, and all settings of the others whose real peak fits the largest budget."""
    (plain,) = of(records, model, "plain")
    return [plain, *(r for system in RIVALS for r in within(of(records, model, system), max(BUDGETS) * plain.peak))]


class Stepper:
    """A process that has compiled a setting, and runs a step when asked.

    Raises:
        RuntimeError: it died; the message says of what.
    """

    def __init__(self, record: Record) -> None:
        self._name = record.name
        self._process = Process(
            "tools.budget.measure:steps", model=record.model, system=record.system, setting=record.setting
        )
        self._records = self._process.records()
        self._answer()

    def _answer(self) -> Any:
        for record in self._records:
            return record
        with self._process:
            raise RuntimeError(f"{self._name}: {self._process.death().why}")

    def step(self) -> float:
        """Seconds of one step."""
        self._process.send(None)
        return self._answer()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()


def in_turns(records: Sequence[Record], rounds: int, console: Console) -> dict[str, list[float]]:
    """Seconds of each round, by the records' names; every round begins with another setting."""
    with ExitStack() as stack:
        steppers = []
        for record in records:
            console.log("compiling", record.name)
            steppers.append((record.name, stack.enter_context(Stepper(record))))
        seconds: dict[str, list[float]] = {name: [] for name, _ in steppers}
        for turn in range(rounds):
            first = turn % len(steppers)
            for name, stepper in steppers[first:] + steppers[:first]:
                seconds[name].append(stepper.step())
    return seconds


def time_settings(records: Sequence[Record], models: Sequence[str], rounds: int, out: Path, console: Console) -> None:
    """Times the candidates of each model and writes time/MODEL.json, and time.md from all such files."""
    (out / "time").mkdir(exist_ok=True)
    for model in models:
        chosen = candidates(records, model)
        content = {"records": [asdict(r) for r in chosen], "seconds": in_turns(chosen, rounds, console)}
        write_text(out / "time" / f"{model}.json", json.dumps(content, indent=1) + "\n")
    tables = [table(path.stem, read_json(path)) for path in sorted((out / "time").glob("*.json"))]
    write_text(out / "time.md", "\n".join(tables))


def table(model: str, content: Mapping[str, Any]) -> str:
    """A row for each budget: of each system the fastest setting that fits, against plain torch.compile."""
    plain, *others = (Record(**record) for record in content["records"])
    steps = content["seconds"][plain.name]
    ratios = {
        r.name: [own / other for own, other in zip(content["seconds"][r.name], steps, strict=True)] for r in others
    }
    systems = [SYSTEMS[system] for system in RIVALS]
    lines = [f"## {model}", "", head("real peak at most", *systems, texts=1 + len(systems))]
    for budget in BUDGETS:
        fitting = within(others, budget * plain.peak)
        fastest = {
            system: min((r for r in fitting if r.system == system), key=lambda r: median(ratios[r.name]), default=None)
            for system in RIVALS
        }
        best = min((median(ratios[r.name]) for r in fitting), default=0.0)
        cells = [_cell(record, ratios, best) for record in fastest.values()]
        lines.append(line(f"{budget:g}", *cells))
    note = f"Medians of {len(steps)} rounds (lowest to highest), each against plain torch.compile's step in that round"
    return "\n".join(
        [*lines, "", f"{note}: {median(steps):.3f} s. The fastest setting that fits, the fastest system bold.", ""]
    )


def _cell(record: Record | None, ratios: Mapping[str, list[float]], best: float) -> str:
    if record is None:
        return "nothing fits"
    laps = ratios[record.name]
    middle = f"**{median(laps):.2f}**" if median(laps) == best else f"{median(laps):.2f}"
    return f"{middle} ({min(laps):.2f} to {max(laps):.2f}), at {record.setting}"
