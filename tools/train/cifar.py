"""Train a pre-activation ResNet on CIFAR-10 in several storage modes, and compare the curves.

The recipe is that of Chakrabarti & Moseley (2019), scaled to the number of epochs: batches of 128, momentum
0.9, weight decay 2e-4 on convolution and classifier weights, learning rate 0.01 for the first 400 of 64,000
iterations, then 0.1, divided by ten at 32,000 and at 48,000. Images are padded by 4 pixels, cropped and
flipped at random. All modes of a seed start from the same weights and see the same batches.

Every run writes a JSON file with one record per epoch, and a checkpoint: the same command continues where it
was interrupted, and skips what is finished. Seeds and modes may be added later. All runs in the directory
together give table.md and curves.png.

Examples:

    python -m tools.train cifar --data data --out runs/20
    python -m tools.train cifar --data data --out runs/164 --depth 164 --modes plain,8,4 --seeds 0,1,2
    python -m tools.train cifar --data data --out runs/try --depth 8 --epochs 1 --limit 1024 --lowering eager
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.demo.model import preact_resnet
from fxapprox.measure.memory import stored_bytes
from tools.harness import Lowering, ResultsError
from tools.train.curves import write_results
from tools.train.data import DataError, Split, load, normalized
from tools.train.runs import MODES, Epoch, Recipe, Run, claim, recorded, restore, save

PADDING = 4
EVALUATION_BATCH = 500
REPORT_EVERY = 20
BOTTLENECK_FROM_DEPTH = 164


@dataclass(frozen=True)
class Trainer:
    """A run's network and optimizer on their device."""

    run: Run
    network: nn.Module
    compiled: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device


# Data: uint8 images stay on the device; random numbers are drawn on the CPU, to be the same everywhere


def augmented_batches(train: Split, run: Run, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch's full batches in random order: images (batch, 3, 32, 32), float32, and labels (batch,)."""
    rng = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch)
    order = torch.randperm(len(train), generator=rng)
    corners = torch.randint(2 * PADDING + 1, (len(train), 2), generator=rng)
    flips = torch.rand(len(train), generator=rng) < 0.5
    for start in range(0, len(train) - run.recipe.batch + 1, run.recipe.batch):
        chosen = slice(start, start + run.recipe.batch)
        index = order[chosen].to(train.images.device)
        yield (
            crop_and_flip(normalized(train.images[index]), corners[chosen], flips[chosen]),
            train.labels[index],
        )


def crop_and_flip(images: Tensor, corners: Tensor, flips: Tensor) -> Tensor:
    """Pads by zeros, takes the window at each image's corner, and mirrors it where asked.

    Args:
        images: (N, C, H, W).
        corners: (N, 2), row and column of the window, 0 to 2 * PADDING.
        flips: (N,) bool.

    Returns:
        (N, C, H, W).
    """
    count, channels, height, width = images.shape
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(flips[:, None], columns.flip(1), columns) + corners[:, 1:]
    rows = torch.arange(height) + corners[:, :1]
    rows, columns = rows.to(images.device)[:, None, :, None], columns.to(images.device)[:, None, None, :]
    sample = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return F.pad(images, (PADDING,) * 4)[sample, channel, rows, columns]


# Training


def make_trainer(run: Run, device: torch.device) -> Trainer:
    """The network with the seed's weights, compiled for the run's mode, and its optimizer."""
    torch.compiler.reset()  # torch.compile gives up on a function after eight versions of it
    torch.manual_seed(run.seed)
    recipe = run.recipe
    network = preact_resnet(recipe.depth, block=recipe.block).to(device)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return Trainer(run, network, compile_for(run.mode, network, recipe.lowering), optimizer, device)


def compile_for(mode: str, network: nn.Module, lowering: str) -> Callable[[Tensor], Tensor]:
    """The network compiled by torch.compile (mode "plain") or by fxapprox."""
    if mode == "plain":
        backend = "inductor" if lowering == "inductor" else "aot_eager"
        return torch.compile(network, backend=backend, dynamic=False)
    bits = None if mode == "exact" else int(mode)
    return fxapprox.compile(network, bits=bits, lowering=lowering, dynamic=False)


def train_run(run: Run, data: tuple[Split, Split], out: Path, device: torch.device, bars: Progress) -> None:
    """Trains a run from its last checkpoint to its end, saving after every epoch."""
    train, test = data
    trainer = make_trainer(run, device)
    restore(run, trainer.network, trainer.optimizer, out)
    steps = len(train) // run.recipe.batch
    bar = bars.add_task(run.name, total=run.recipe.epochs * steps, numbers="compiling")
    bars.advance(bar, len(run.epochs) * steps)
    while not run.finished:
        trained = train_epoch(trainer, train, lambda loss, accuracy: advance(bars, bar, loss, accuracy))
        run.epochs.append(Epoch(epoch=len(run.epochs) + 1, **trained, **evaluate(trainer.network, test)))
        save(run, trainer.network, trainer.optimizer, out)


def train_epoch(trainer: Trainer, train: Split, report: Callable[[Tensor, Tensor], None]) -> dict[str, Any]:
    """One pass over the training set; `report` gets loss and accuracy so far after every step."""
    run, start, rate = trainer.run, time.perf_counter(), 0.0
    steps = len(train) // run.recipe.batch
    loss_sum, right = torch.zeros(2, device=trainer.device)
    for step, (images, labels) in enumerate(augmented_batches(train, run, len(run.epochs))):
        rate = run.recipe.rate((len(run.epochs) + step / steps) / run.recipe.epochs)
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        loss, scores = train_step(trainer, images, labels)
        loss_sum += loss
        right += (scores.argmax(1) == labels).float().mean()
        report(loss_sum / (step + 1), right / (step + 1))
    means = {"train_loss": loss_sum.item() / steps, "train_accuracy": right.item() / steps}
    return {**means, "learning_rate": rate, "seconds": time.perf_counter() - start}


def train_step(trainer: Trainer, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns loss and class scores. The run's first step also measures stored bytes."""
    trainer.optimizer.zero_grad(set_to_none=True)
    scores = trainer.compiled(images)
    loss = F.cross_entropy(scores, labels)
    if not trainer.run.stored_bytes:
        alive = [*trainer.network.parameters(), *trainer.network.buffers(), images, labels]
        trainer.run.stored_bytes = stored_bytes(loss, exclude=alive)
    loss.backward()
    trainer.optimizer.step()
    return loss.detach(), scores.detach()


@torch.no_grad()
def evaluate(network: nn.Module, test: Split) -> dict[str, float]:
    """Test loss and accuracy of the network itself, not compiled."""
    network.eval()
    loss, right = 0.0, 0
    for start in range(0, len(test), EVALUATION_BATCH):
        chosen = slice(start, start + EVALUATION_BATCH)
        scores, labels = network(normalized(test.images[chosen])), test.labels[chosen]
        loss += F.cross_entropy(scores, labels, reduction="sum").item()
        right += int((scores.argmax(1) == labels).sum())
    network.train()
    return {"test_loss": loss / len(test), "test_accuracy": right / len(test)}


def advance(bars: Progress, bar: TaskID, loss: Tensor, accuracy: Tensor) -> None:
    """One step further; numbers are fetched from the device only now and then, because that waits for it."""
    bars.advance(bar)
    if int(bars.tasks[bar].completed) % REPORT_EVERY == 0:
        bars.update(bar, numbers=f"loss {loss.item():.3f}, accuracy {accuracy.item():.1%}")


# Command line


def train_all(runs: list[Run], data: Path, out: Path, device: torch.device, console: Console) -> None:
    """Trains what is not finished, and writes the results after every run."""
    claim(out, runs[0].recipe)
    remaining = [run for run in runs if not recorded(run, out).finished]
    console.print(f"{len(runs) - len(remaining)} of {len(runs)} runs are finished")
    if remaining:
        split = load_split(data, runs[0].recipe, device)
        with progress_bars(console) as bars:
            for run in remaining:
                train_run(run, split, out, device, bars)
                write_results(out, run.recipe)
    write_results(out, runs[0].recipe)
    console.print((out / "table.md").read_text(encoding="utf-8"), soft_wrap=True, highlight=False)


def load_split(data: Path, recipe: Recipe, device: torch.device) -> tuple[Split, Split]:
    """Training and test set on the device, the first limited to `recipe.limit` images."""
    train, test = load(data)
    train = train.first(recipe.limit or len(train))
    if len(train) < recipe.batch:
        raise DataError(f"{len(train)} training images do not fill one batch of {recipe.batch}")
    return train.to(device), test.to(device)


def progress_bars(console: Console) -> Progress:
    """A bar per run, with loss, accuracy and the time left."""
    numbers = (TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.fields[numbers]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(TextColumn("{task.description:<14}"), BarColumn(), *numbers, *times, console=console)


def chosen_modes(text: str) -> list[str]:
    """Modes of a comma-separated list."""
    modes = list(dict.fromkeys(mode.strip() for mode in text.split(",")))
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        message = f"{', '.join(unknown)}: choose from {', '.join(MODES)}"
        raise typer.BadParameter(message, param_hint="--modes")
    return modes


def chosen_seeds(text: str) -> list[int]:
    """Seeds of a comma-separated list."""
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected integers, as in 0,1,2", param_hint="--seeds") from None


def chosen_block(depth: int) -> Literal["basic", "bottleneck"]:
    """The blocks that the paper's network of this depth has, if there can be one."""
    block = "bottleneck" if depth >= BOTTLENECK_FROM_DEPTH else "basic"
    try:
        preact_resnet(depth, block=block)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--depth") from None
    return block


def chosen_device(text: str) -> torch.device:
    """A device that works."""
    try:
        return torch.zeros(1, device=text).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{text!r}: {reason}", param_hint="--device") from None


def main(
    data: Annotated[Path, typer.Option(help="directory of CIFAR-10: torchvision's layout or image sheets")],
    out: Annotated[Path, typer.Option(help="directory of the results; created, or continued")],
    modes: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(MODES)}")] = "exact,8,4,2",
    seeds: Annotated[str, typer.Option(help="comma-separated integers")] = "0",
    depth: Annotated[int, typer.Option(help="20, 110, 164; basic blocks below 164, else bottlenecks")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="164 are the paper's 64,000 iterations")] = 164,
    batch: Annotated[int, typer.Option(min=2, help="images per step")] = 128,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 0.1,
    limit: Annotated[int | None, typer.Option(min=1, help="use only so many training images")] = None,
    lowering: Annotated[Lowering, typer.Option(help="eager starts sooner, runs slower")] = Lowering.inductor,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Trains what is not finished, and writes the results."""
    recipe = Recipe(depth, chosen_block(depth), epochs, batch, limit, lr, 0.9, 2e-4, lowering.value)
    runs = [Run(mode, seed, recipe) for seed in chosen_seeds(seeds) for mode in chosen_modes(modes)]
    console = Console()
    try:
        train_all(runs, data, out, chosen_device(device), console)
    except (DataError, ResultsError) as error:
        console.print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
