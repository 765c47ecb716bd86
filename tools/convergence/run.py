"""One run: the weights of a seed, trained by one arm, with its curve and the gradients on its way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tools.convergence.arms import ARMS, plain
from tools.convergence.probe import Probe, share
from tools.convergence.records import Key, Point, Run
from tools.convergence.task import Data, Place, Task
from tools.convergence.tasks import TASKS
from tools.convergence.train import descend, evaluated, started
from tools.train.auto import nudge

POINTS = 20  # of a curve
PROBED_AT = (0.0, 0.25, 0.5)  # of all steps; and at the end


def records(items: Iterable[dict[str, Any]], *, data: str, out: str, device: str) -> Iterator[dict[str, Any]]:
    """The records of keys, as `tools.harness` asks for them."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "average_bits=.* cannot be had")  # a small net has few values to choose for
    for item in items:
        key = Key(**item)
        yield asdict(run(replace(TASKS[key.task], steps=key.steps), key, Place(Path(data), Path(out)), device))


def run(task: Task, key: Key, place: Place, device: str = "cpu") -> Run:
    """Trains one arm from one seed."""
    torch.compiler.reset()  # torch.compile gives up on a function after eight versions of it
    began, seconds = time.perf_counter(), 0.0
    arm, data = ARMS[key.arm], _moved(task.data(place), device)
    objective = started(task, key.seed, place).to(device)
    if arm.nudged:
        nudge(objective)
    step, probe = arm.compile(objective, key.lowering), None
    if arm.probed:
        reference = started(task, key.seed, place).to(device)
        share(reference, objective)
        probe = Probe(task, data, (objective, step), (reference, plain(reference, key.lowering)))
    losses: list[float] = []
    curve: list[Point] = []
    probed = {round(at * task.steps) for at in PROBED_AT} if probe else set()
    steps = descend(task, objective, step, data, seed=key.seed, order=arm.order)
    for done in range(task.steps):
        if probe and done in probed:
            probe.measure()
        lap = time.perf_counter()
        losses.append(next(steps))
        seconds += time.perf_counter() - lap if done else 0.0
        if (done + 1) * POINTS // task.steps > done * POINTS // task.steps:
            since = curve[-1].step if curve else 0
            curve.append(Point(done + 1, fmean(losses[since:]), *evaluated(task, objective, data)))
    if probe:
        probe.measure()
    errors = probe.found if probe else []
    return Run(
        **asdict(key),
        first=losses[0].hex(),
        final={"loss": curve[-1].loss, "accuracy": curve[-1].accuracy},
        curve=curve,
        seconds=round(seconds, 3),
        total_seconds=round(time.perf_counter() - began, 3),
        error=[found.error for found in errors] or None,
        noise=[found.noise for found in errors] or None,
        bias=[found.bias for found in errors] or None,
    )


def _moved(data: Data, device: str) -> Data:
    (x, y), (valid_x, valid_y) = data.train, data.valid
    return Data((x.to(device), y.to(device)), (valid_x.to(device), valid_y.to(device)), data.digest)
