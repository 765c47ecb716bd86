"""Runs a target in several systems, each in a process of its own; they take turns, and so see the same machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fxapprox.bench.records import Bench, Record
from fxapprox.bench.systems import BASELINE, SYSTEMS
from fxapprox.errors import FxApproxError, OptionError, TargetError


class WorkerFailed(FxApproxError):
    """A worker could not do what it was asked to; the message is its error in a line."""


class Worker:
    """A process with a target in a system; see ``worker``."""

    def __init__(self, target: str, system: str, device: str, seed: int, folder: Path) -> None:
        self._log = (folder / f"{system}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fxapprox.bench.worker", target, system, device, str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / system), "PYTHONPATH": _search_path()},
        )  # fmt: skip
        self._answer()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            WorkerFailed: it raised, or the process has died.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(self._last_words()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(self._last_words())
        found = json.loads(line)
        if "failed" in found:
            self.close()
            raise WorkerFailed(found["failed"])
        return found

    def _last_words(self) -> str:
        """Why the process ended."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "the process was killed, perhaps for memory"
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"the process ended with {code}: {lines[-1] if lines else 'no message'}"

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._log.close()


def _search_path() -> str:
    """This process's, so that a worker finds what a target was found by."""
    return os.pathsep.join(filter(None, sys.path))  # python -m looks into the working directory anyway


def bench(
    target: str,
    systems: Sequence[str] = tuple(SYSTEMS),
    *,
    rounds: int = 15,
    device: str = "cpu",
    seed: int = 0,
    console: Console | None = None,
) -> Bench:
    """Runs a target's training step in several systems.

    Compiled one after the other, each without a cache; then measured; then all take turns, two steps each in every
    round, of which the second is timed, every round begun by another one.

    Args:
        target: module:factory or file.py:factory, as for ``fxapprox dump``.
        systems: names in ``SYSTEMS``.
        rounds: timed steps of each.
        device: "cpu", or a CUDA device.
        seed: of weights and random numbers.
        console: where progress goes; standard error by default.

    Raises:
        OptionError: a system is unknown, or the device is not there.
        TargetError: the target fails as it is, without any system.
    """
    _check(systems, device)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack, _progress(console) as bar:
        task = bar.add_task("", total=2 * len(systems) + rounds)
        folder = Path(name)
        bar.update(task, description="exact gradients")
        reference = _reference(target, device, seed, folder)
        records: dict[str, Record] = {}
        workers: dict[str, Worker] = {}
        for system in sorted(systems, key=lambda system: system != BASELINE):  # others may be measured against it
            bar.update(task, description=f"{SYSTEMS[system].label}: compiling", advance=1)
            records[system], worker = _first(target, system, device, seed, folder, reference)
            if worker is not None:
                workers[system] = worker
                stack.callback(worker.close)
        for system, worker in list(workers.items()):
            bar.update(task, description=f"{SYSTEMS[system].label}: memory", advance=1)
            records[system] = _with_memory(records[system], worker)
        alive = {system: worker for system, worker in workers.items() if not records[system].failed}
        for turn in range(rounds):
            bar.update(task, description="steps in turn", advance=1)
            _round(turn, alive, records)
        found = tuple(records[system] for system in systems)
    if all(record.failed for record in found):
        raise TargetError(f"{target}: no system runs it: {found[0].failed}")
    cuda = device.startswith("cuda")
    where = torch.cuda.get_device_name(device) if cuda else f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return Bench(target, where, torch.__version__, torch.get_num_threads(), reference, found)


def _check(systems: Sequence[str], device: str) -> None:
    for system in systems:
        if system not in SYSTEMS:
            raise OptionError(f"no system {system!r}; there are: {', '.join(SYSTEMS)}")
    if torch.device(device).type not in ("cpu", "cuda"):
        raise OptionError(f"device {device!r}: memory is measured on cpu and cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise OptionError(f"device {device!r}: this torch sees no CUDA device")


def _reference(target: str, device: str, seed: int, folder: Path) -> str:
    """Writes the gradients in double precision, if the model draws no random numbers; what errors are against."""
    try:
        worker = Worker(target, "float64", device, seed, folder)
        if not worker.ask("random")["random"]:
            worker.ask("first", save=str(folder / "float64.pt"))
            worker.close()
            return "float64"
        worker.close()
    except WorkerFailed:
        pass  # code that insists on its types
    return SYSTEMS[BASELINE].label


def _first(
    target: str, system: str, device: str, seed: int, folder: Path, reference: str
) -> tuple[Record, Worker | None]:
    """The first step of a system, and its worker if that succeeded."""
    record, exact, plain = Record(system), folder / "float64.pt", folder / f"{BASELINE}.pt"
    try:
        worker = Worker(target, system, device, seed, folder)
        against = exact if reference == "float64" else plain if SYSTEMS[system].compiled and plain.exists() else ""
        save = plain if system == BASELINE and reference != "float64" else ""
        return replace(record, **worker.ask("first", save=str(save), against=str(against))), worker
    except WorkerFailed as error:
        return replace(record, failed=str(error)), None


def _with_memory(record: Record, worker: Worker) -> Record:
    """The record with what a worker measures of memory."""
    try:
        return replace(record, **worker.ask("memory"))
    except WorkerFailed as error:
        return replace(record, failed=str(error))


def _round(turn: int, workers: dict[str, Worker], records: dict[str, Record]) -> None:
    """One timed step of each; who begins changes from round to round. Mutates both: who fails takes no further part."""
    names = list(workers)
    first = turn % max(1, len(names))
    for system in names[first:] + names[:first]:
        try:
            seconds = workers[system].ask("timed")["seconds"]
        except WorkerFailed as error:
            records[system] = replace(records[system], failed=str(error))
            del workers[system]
            continue
        records[system] = replace(records[system], step_seconds=(*records[system].step_seconds, seconds))


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console or Console(stderr=True), transient=True)
