"""What a benchmark found: one record for each system, and the JSON of all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fxapprox.bench.systems import BASELINE
from fxapprox.errors import FxApproxError

SCHEMA = 2


@dataclass(frozen=True)
class Record:
    """One system.

    Attributes:
        system: its name.
        stored_bytes: what the autograd graph holds for backward; parameters, buffers, inputs and targets aside.
        alive_bytes: allocated during forward and still in use after it.
        peak_bytes: the allocator's highest level in a training step, above that before it.
        compile_seconds: the first step, after a trivial function was compiled; compiled systems start without a cache.
        step_seconds: of the second of two steps in each round; the systems took turns.
        gradient_error: ||g - g0|| / ||g0||, all parameters together; None where it cannot be told.
        loss: of the first step, as a hexadecimal number, which has every bit.
        failed: why there are no numbers; "".
        compile_cpu_seconds: of the process in the first step, without those of the C++ compiler.
    """

    system: str
    stored_bytes: int = 0
    alive_bytes: int = 0
    peak_bytes: int = 0
    compile_seconds: float = 0.0
    step_seconds: tuple[float, ...] = ()
    gradient_error: float | None = None
    loss: str = ""
    failed: str = ""
    compile_cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Bench:
    """All systems on one target.

    Attributes:
        target: as the command line named it.
        device, torch, threads: where it was run.
        reference: what gradient errors are against: "float64", or "torch.compile" for models that draw random numbers.
        records: one for each system, in the order that was asked for.
    """

    target: str
    device: str
    torch: str
    threads: int
    reference: str
    records: tuple[Record, ...]

    @property
    def baseline(self) -> Record | None:
        """Plain torch.compile's record, if it was run and did not fail."""
        return next((r for r in self.records if r.system == BASELINE and not r.failed), None)

    def step_ratios(self, record: Record) -> list[float]:
        """Its step time in each round against plain torch.compile's in that round; none without both."""
        base = self.baseline
        if base is None or record.failed:
            return []
        return [own / other for own, other in zip(record.step_seconds, base.step_seconds, strict=True)]

    def to_json(self) -> str:
        """All fields; ``schema`` grows by one when a field changes its meaning."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)


def middle(ratios: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return median(ratios) if ratios else math.nan


def spread(ratios: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile."""
    if len(ratios) < 2:
        return middle(ratios), middle(ratios)
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return low, high


def read(path: Path) -> Bench:
    """A benchmark from its JSON.

    Raises:
        FxApproxError: the file is damaged, or of another version.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise FxApproxError(f"{path} was written by another version: run the benchmark again")
        records = [Record(**{**each, "step_seconds": tuple(each["step_seconds"])}) for each in content.pop("records")]
        return replace(Bench(**content, records=()), records=tuple(records))
    except (ValueError, KeyError, TypeError) as error:
        raise FxApproxError(f"{path}: not a benchmark's JSON ({error!r}); delete it and run again") from error
