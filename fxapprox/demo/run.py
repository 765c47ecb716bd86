"""The demonstration: one network trained side by side with plain torch.compile and with fxapprox.

Every mode starts from the same weights and sees the same batches, so that the first step can be compared
gradient by gradient. Memory is measured, not predicted (see `fxapprox.measure.memory`). Step times are measured
after training, with the modes taking turns step by step, so that a change in the machine's load meets them
all alike. A further mode is one more line in `MODES`; the first mode is what the others are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

import fxapprox
from fxapprox.demo.data import Dataset, generate
from fxapprox.demo.model import preact_resnet
from fxapprox.measure.memory import peak_bytes, stored_bytes

MIB = 2**20
CAPTION = (
    "Stored: held for backward. Peak: the allocator's, during a step. Step time: steps taken in turn. "
    "Gradient error and first loss: of the first step, against the first row's. Acc.: of test images, classified right."
)
HEADINGS = (
    "stored\nMiB",
    "peak\nMiB",
    "step\ntime",
    "gradient\nerror",
    "first\nloss",
    "final\nloss",
    "test\nacc.",
)
LEARNING_RATE = 0.2


@dataclass(frozen=True)
class Mode:
    """One way to train: a name for the table and what turns a module into the callable that is trained."""

    name: str
    compile: Callable[[nn.Module], Callable[..., Any]]


MODES = (
    Mode("torch.compile", partial(torch.compile, dynamic=False)),
    Mode("fxapprox exact", partial(fxapprox.compile, bits=None, dynamic=False)),
    Mode("fxapprox 8 bits", partial(fxapprox.compile, bits=8, dynamic=False)),
    Mode("fxapprox 4 bits", partial(fxapprox.compile, bits=4, dynamic=False)),
)


@dataclass(frozen=True)
class Scale:
    """How large the demonstration is.

    Attributes:
        stages: stages of the pre-activation ResNet.
        depth: its layers, 2 * stages * n + 2.
        width: channels of its first stage.
        batch: images per step.
        steps: training steps of each mode.
        train_images: size of the training set.
        test_images: size of the test set.
        rounds: timed steps of each mode.
    """

    stages: int
    depth: int
    width: int
    batch: int
    steps: int
    train_images: int
    test_images: int
    rounds: int


FULL = Scale(stages=3, depth=8, width=16, batch=64, steps=250, train_images=4096, test_images=1000, rounds=15)
QUICK = Scale(stages=2, depth=6, width=8, batch=32, steps=360, train_images=2048, test_images=500, rounds=11)


@dataclass(frozen=True)
class Row:
    """What the demonstration found out about one mode.

    Attributes:
        mode: its name.
        stored_bytes: bytes held for backward, parameters, buffers and inputs aside.
        peak_bytes: the allocator's real peak during a training step, above the level before it.
        step_time: time of a step relative to the first mode, median over rounds.
        gradient_error: ||g - g0|| / ||g0|| at the first step, all parameters together; g0: the first row's.
        same_first_loss: whether the loss of the first step is the first mode's, bit for bit.
        final_loss: mean training loss over the last tenth of the steps.
        accuracy: fraction of the test images classified correctly.
    """

    mode: str
    stored_bytes: int
    peak_bytes: int
    step_time: float
    gradient_error: float
    same_first_loss: bool
    final_loss: float
    accuracy: float


def run_demo(
    *,
    quick: bool = False,
    seed: int = 0,
    console: Console | None = None,
    modes: Sequence[Mode] = MODES,
    scale: Scale | None = None,
) -> list[Row]:
    """Train in every mode, print one table, and return its rows.

    Args:
        quick: a smaller network and fewer steps.
        seed: seed of weights, data and batches.
        console: where progress and table go; the standard output by default.
        modes: what to compare; the first is the reference.
        scale: sizes to use instead of those that `quick` selects.

    Raises:
        ValueError: `scale` has an impossible depth, or fewer images than a batch.
    """
    scale = scale or (QUICK if quick else FULL)
    console = console or Console()
    batches = _batches(generate(scale.train_images, seed=seed), scale, seed)
    test = generate(scale.test_images, seed=seed + 1)
    torch.compiler.reset()  # torch.compile gives up on a function after eight versions of it
    with _progress(console) as progress:
        task = progress.add_task("", total=len(modes) * (scale.steps + scale.rounds))
        runs = []
        for mode in modes:
            runs.append(_train(_prepare(mode, scale, seed, batches), progress, task))
            if not console.is_terminal:  # there is no bar in a file
                console.print(f"{mode.name}: {scale.steps} steps done")
        accuracies = [_accuracy(run.model, test) for run in runs]
        peaks = [_peak(run) for run in runs]
        times = _interleaved_times(runs, scale.rounds, progress, task)
    columns = zip(runs, peaks, times, accuracies, strict=True)
    rows = [_row(run, runs[0], peak, time, accuracy) for run, peak, time, accuracy in columns]
    console.print(_table(rows, scale))
    return rows


@dataclass
class _Run:
    """A mode's training in progress, and what its first step gave."""

    mode: Mode
    model: nn.Module
    compiled: Callable[..., Any]
    optimizer: Optimizer
    schedule: LRScheduler
    batches: list[tuple[Tensor, Tensor]]
    losses: list[Tensor] = field(default_factory=list)
    first_gradient: Tensor = field(default_factory=lambda: torch.empty(0))
    stored: int = 0


def _train(run: _Run, progress: Progress, task: TaskID) -> _Run:
    progress.update(task, description=f"{run.mode.name}: compiling")
    _first_step(run)
    for batch in run.batches[1:]:
        progress.update(task, advance=1, description=f"{run.mode.name}: loss {run.losses[-1].item():.3f}")
        run.losses.append(_step(run, batch))
        run.schedule.step()
    progress.advance(task)
    return run


def _prepare(mode: Mode, scale: Scale, seed: int, batches: list[tuple[Tensor, Tensor]]) -> _Run:
    torch.manual_seed(seed)
    model = preact_resnet(scale.depth, width=scale.width, stages=scale.stages)
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=scale.steps, pct_start=0.25)
    return _Run(mode, model, mode.compile(model), optimizer, schedule, batches)


def _batches(data: Dataset, scale: Scale, seed: int) -> list[tuple[Tensor, Tensor]]:
    """One batch per step, drawn epoch by epoch without replacement; an incomplete last batch is left out."""
    if len(data) < scale.batch:
        raise ValueError(f"{len(data)} training images do not fill one batch of {scale.batch}")
    rng = torch.Generator().manual_seed(seed)
    chosen: list[Tensor] = []
    while len(chosen) < scale.steps:
        epoch = torch.randperm(len(data), generator=rng).split(scale.batch)
        chosen += [index for index in epoch if len(index) == scale.batch]
    return [(data.images[index], data.labels[index]) for index in chosen[: scale.steps]]


def _first_step(run: _Run) -> None:
    """One step that also records the gradient, and the bytes stored for backward."""
    images, labels = run.batches[0]
    loss = F.cross_entropy(run.compiled(images), labels)
    run.stored = stored_bytes(loss, exclude=[*run.model.parameters(), *run.model.buffers(), images, labels])
    loss.backward()
    run.first_gradient = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])
    run.losses.append(loss.detach())
    run.optimizer.step()
    run.schedule.step()


def _step(run: _Run, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    run.optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(run.compiled(images), labels)
    loss.backward()
    run.optimizer.step()
    return loss.detach()


def _peak(run: _Run) -> int:
    run.optimizer.zero_grad(set_to_none=True)
    return peak_bytes(partial(_step, run, run.batches[0])).peak


def _accuracy(model: nn.Module, test: Dataset) -> float:
    """Fraction classified correctly by the module as it is, not compiled; leaves it in training mode."""
    model.eval()
    with torch.no_grad():
        right = (model(test.images).argmax(1) == test.labels).float().mean().item()
    model.train()
    return right


def _interleaved_times(runs: list[_Run], rounds: int, progress: Progress, task: TaskID) -> list[float]:
    """Each run's step time relative to the first run's: a round is one step of each; median over rounds."""
    progress.update(task, description="timing steps in turn")
    ratios = []
    for number in range(rounds):
        seconds = [_seconds(partial(_step, run, run.batches[number % len(run.batches)])) for run in runs]
        ratios.append([own / seconds[0] for own in seconds])
        progress.advance(task, len(runs))
    return [median(column) for column in zip(*ratios, strict=True)]


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _row(run: _Run, reference: _Run, peak: int, step_time: float, accuracy: float) -> Row:
    error = (run.first_gradient - reference.first_gradient).norm() / reference.first_gradient.norm()
    last = run.losses[-max(1, len(run.losses) // 10) :]
    return Row(
        mode=run.mode.name,
        stored_bytes=run.stored,
        peak_bytes=peak,
        step_time=step_time,
        gradient_error=error.item(),
        same_first_loss=torch.equal(run.losses[0], reference.losses[0]),
        final_loss=fmean(loss.item() for loss in last),
        accuracy=accuracy,
    )


def _progress(console: Console) -> Progress:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(TextColumn("{task.description:<28}"), *columns, console=console)


def _table(rows: list[Row], scale: Scale) -> Table:
    title = f"Pre-activation ResNet-{scale.depth}, {scale.steps} steps of {scale.batch} images of ten shapes"
    table = Table(title=title, caption=CAPTION, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for name in HEADINGS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.mode, *_cells(row, rows[0]))
    return table


def _cells(row: Row, reference: Row) -> list[str]:
    return [
        f"{row.stored_bytes / MIB:.1f} ({row.stored_bytes / reference.stored_bytes:.2f}x)",
        f"{row.peak_bytes / MIB:.1f} ({row.peak_bytes / reference.peak_bytes:.2f}x)",
        f"{row.step_time:.2f}x",
        f"{row.gradient_error:.2%}",
        "same bits" if row.same_first_loss else "differs",
        f"{row.final_loss:.3f}",
        f"{row.accuracy:.1%}",
    ]
