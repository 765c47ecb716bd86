"""Step times at equal real peak: the processes stay alive and take turns, so that all of them see the same machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from tools.budget_models import SYSTEMS
from tools.budget_records import Record, distinct, fastest_within, of
from tools.runs import read_json, write_text

BUDGETS = (0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
RIVALS = ("fxapprox", "torch-budget", "checkpoint")


@dataclass(frozen=True)
class Choice:
    """What a system runs where the real peak may be this fraction of plain torch.compile's; None: nothing fits."""

    budget: float
    system: str
    record: Record | None


def choices(records: Sequence[Record], model: str) -> list[Choice]:
    """The fastest recorded setting of each system that fits each budget, whatever budget it was made for."""
    (plain,) = of(records, model, "plain")
    return [
        Choice(budget, system, fastest_within(distinct(of(records, model, system)), budget * plain.peak))
        for budget in BUDGETS
        for system in RIVALS
    ]


class Stepper:
    """A process that has compiled a setting, and runs a step when asked."""

    def __init__(self, record: Record) -> None:
        command = [sys.executable, "-m", "tools.budget_worker", "steps", record.model, record.system, record.setting]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self._answer() != "ready":
            self._process.communicate()
            raise RuntimeError(f"{record.name} does not run: {' '.join(command)} says why")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes standard input, which ends it


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
    """Times the choices of each model and writes time/MODEL.json, and time.md from all such files."""
    (out / "time").mkdir(exist_ok=True)
    for model in models:
        made = choices(records, model)
        timed = {r.name: r for r in (*of(records, model, "plain"), *(c.record for c in made if c.record))}
        seconds = in_turns(list(timed.values()), rounds, console)
        content = {"choices": [asdict(choice) for choice in made], "seconds": seconds}
        write_text(out / "time" / f"{model}.json", json.dumps(content, indent=1) + "\n")
    tables = [table(path.stem, read_json(path)) for path in sorted((out / "time").glob("*.json"))]
    write_text(out / "time.md", "\n".join(tables))


def table(model: str, content: Mapping[str, Any]) -> str:
    """A row for each budget: the step time of each system against plain torch.compile; the fastest is bold."""
    head = ["real peak at most", *(SYSTEMS[system] for system in RIVALS)]
    lines = [f"## {model}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    plain = content["seconds"][Record(model, "plain", "").name]
    for budget in BUDGETS:
        chosen = {c["system"]: c["record"] for c in content["choices"] if c["budget"] == budget}
        ratios = {
            system: [own / other for own, other in zip(content["seconds"][Record(**record).name], plain, strict=True)]
            for system, record in chosen.items() if record is not None
        }  # fmt: skip
        best = min(ratios, key=lambda system: median(ratios[system]), default="")
        row = [_cell(chosen[system], ratios.get(system, []), bold=system == best) for system in RIVALS]
        lines.append(f"| {budget:g} | {' | '.join(row)} |")
    note = f"Medians of {len(plain)} rounds (lowest to highest), each against plain torch.compile's step in that round"
    return "\n".join([*lines, "", f"{note}: {median(plain):.3f} s.", ""])


def _cell(record: Mapping[str, Any] | None, ratios: Sequence[float], *, bold: bool) -> str:
    if record is None:
        return "nothing fits"
    middle = f"{median(ratios):.2f}"
    return f"{f'**{middle}**' if bold else middle} ({min(ratios):.2f} to {max(ratios):.2f}), at {record['setting']}"
