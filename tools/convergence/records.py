"""What a run leaves, and the files of a directory of runs: runs.jsonl, a line as each ends, and runs.json, all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tools.harness import ResultsError, write_text


@dataclass(frozen=True)
class Key:
    """What a run is; those that differ in task, steps, data or lowering are never paired.

    Attributes:
        task, arm: names in their tables.
        seed: of weights, batches and dropout.
        steps: in all.
        data: digest.
        lowering: how compiled graphs run.
    """

    task: str
    arm: str
    seed: int
    steps: int
    data: str
    lowering: str


class Point(NamedTuple):
    """A point of a curve: steps so far, mean training loss since the last point, loss and accuracy held back."""

    step: int
    train: float
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Run:
    """One arm and seed; numbers that are not finite are nan here and null in the file.

    Attributes:
        task, arm, seed, steps, data, lowering: see `Key`.
        first: the first step's loss, in hexadecimal, to tell whether forward had the same bits.
        final: loss and accuracy on what was held back, at the end.
        curve: see `Point`.
        seconds: of all steps but the first, which compiles.
        total_seconds: with compiling, evaluating and measuring gradients.
        error, noise, bias: of the gradients against plain torch.compile's, at the beginning, a quarter, half and all
            of the steps; as `fxapprox.measure.gradient_error.GradientError` has them. None: not measured.
    """

    task: str
    arm: str
    seed: int
    steps: int
    data: str
    lowering: str
    first: str
    final: dict[str, float | None]
    curve: list[Point]
    seconds: float
    total_seconds: float
    error: list[float | None] | None
    noise: list[float | None] | None
    bias: list[float | None] | None

    @property
    def key(self) -> Key:
        return Key(self.task, self.arm, self.seed, self.steps, self.data, self.lowering)

    @property
    def loss(self) -> float:
        """On what was held back, at the end; nan if it was not finite."""
        return _number(self.final["loss"])

    @property
    def accuracy(self) -> float | None:
        """Likewise, a fraction; None where there is none."""
        return self.final["accuracy"]


def as_json(run: Run) -> str:
    """A run in a line."""
    return json.dumps(_finite(asdict(run)), allow_nan=False)


def parsed(record: dict[str, Any]) -> Run:
    """The run of a record."""
    points = [Point(step, _number(train), _number(loss), accuracy) for step, train, loss, accuracy in record["curve"]]
    return Run(**{**record, "curve": points})


def append(run: Run, out: Path) -> None:
    """Adds a line: a run that has ended is not lost. A line that was cut off goes."""
    path = out / "runs.jsonl"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if not before.endswith("\n"):
        write_text(path, before[: before.rfind("\n") + 1])
    with path.open("a", encoding="utf-8") as file:
        file.write(as_json(run) + "\n")


def recorded(out: Path) -> list[Run]:
    """All runs of a directory, the last one of each key, in order.

    Raises:
        ResultsError: a file is damaged; the end of a line that was being written is not.
    """
    found: dict[Key, Run] = {}
    for path in (out / "runs.json", out / "runs.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for run in map(parsed, _records(lines, path)):
            found[run.key] = run
    return [found[key] for key in sorted(found, key=lambda key: (key.task, key.seed, key.arm, key.steps))]


def merge(out: Path) -> list[Run]:
    """Writes runs.json with everything that is recorded, a line a run; returns it."""
    runs = recorded(out)
    write_text(out / "runs.json", "[\n" + ",\n".join(map(as_json, runs)) + "\n]\n")
    return runs


def _records(lines: list[str], path: Path) -> Iterator[dict[str, Any]]:
    """Those of a file of ours, which has a record a line in both forms."""
    for number, text in enumerate(lines, start=1):
        text = text.rstrip(",")
        if text in ("[", "]", ""):
            continue
        try:
            yield json.loads(text)
        except ValueError as error:
            if number < len(lines):
                raise ResultsError(f"{path}: line {number} is damaged ({error}); delete it and run again") from error


def _finite(value: Any) -> Any:
    """None for numbers that are not finite, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
