"""All systems of one model, measured in this process: one after the other first, then in turns."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import fxapprox
from fxapprox.report.merge import merge
from tools.budget.measure import first_steps, timed
from tools.budget.records import Record
from tools.peaks.models import MODELS, SYSTEMS, Running, started, why_not
from tools.zoo.training import gradients


@dataclass(frozen=True)
class Row(Record):
    """A system on a model; ``gradient_error`` is against plain torch.compile.

    Attributes:
        seconds: of a step, in each round.
        plain_seconds: of plain torch.compile's in these rounds.
    """

    seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)


def records(items: Iterable[str], *, model: str, rounds: int) -> Iterator[Any]:
    """The row of each system; of an item "" the seconds of each round, by system, of those before it that have run."""
    bench = Bench(model)
    for system in items:
        yield asdict(bench.row(system)) if system else bench.in_turns(rounds)


class Bench:
    """What has been compiled of a model, by system. Plain torch.compile's comes first, whatever is asked for."""

    def __init__(self, model: str) -> None:
        self.name, self.model = model, MODELS[model]
        self.running: dict[str, Running] = {}
        self.exact: Tensor | None = None

    def row(self, system: str) -> Row:
        """Measures a system, or says why it cannot."""
        row = Row(self.name, system, "", failed=why_not(self.model, system))
        if row.failed:
            return row
        try:
            exact = self._gradients()
            running = self.running["plain"] if system == "plain" else started(self.model, system)
            with running.context:
                torch.manual_seed(1)
                row = first_steps(row, running.step, running.run, exact)
            self.running[system] = running
            return self._predicted(row) if SYSTEMS[system].options is not None else row
        except Exception as error:  # whatever a compiler raises; a process that dies is recorded by its parent
            return replace(row, failed=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")

    def in_turns(self, rounds: int) -> dict[str, list[float]]:
        """Seconds of a step; every round begins with another system."""
        names = list(self.running)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds if names else 0):
            for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
                running = self.running[name]
                gc.collect()
                seconds[name].append(timed(running.step, running.run))
                running.step.zero_grad(set_to_none=True)
        return seconds

    def _gradients(self) -> Tensor:
        """Plain torch.compile's."""
        if self.exact is None:
            plain = started(self.model, "plain")
            torch.manual_seed(1)
            plain.run(*plain.step.args).backward()
            self.exact = gradients(plain.step)
            plain.step.zero_grad(set_to_none=True)
            self.running["plain"] = plain
        return self.exact

    def _predicted(self, row: Row) -> Row:
        """With what is said of all graphs together."""
        report = merge(fxapprox.reports(self.running[row.system].compiled))
        parts = sum(len(graph.slices) for graph in report.distinct)
        told = [f"{len(report.graphs)} graphs"] if report.graphs else []
        told += [f"{parts} part{'s' * (parts > 1)} in slices"] if parts else []
        return replace(
            row, predicted=report.peak_bytes, predicted_plain=report.baseline_peak_bytes,
            plan="; ".join([*told, *filter(None, [report.fallback])]),
        )  # fmt: skip


def with_turns(rows: Sequence[Row], seconds: dict[str, list[float]]) -> list[Row]:
    """The rows with what `Bench.in_turns` found."""
    return [
        replace(row, seconds=seconds[row.system], plain_seconds=seconds["plain"]) if row.system in seconds else row
        for row in rows
    ]
