"""Train a pre-activation ResNet on CIFAR-10 in several storage modes, and compare the curves.

The recipe is that of Chakrabarti & Moseley (2019), scaled to the number of epochs: batches of 128, momentum
0.9, weight decay 2e-4 on convolution and classifier weights, learning rate 0.01 for the first 400 of 64,000
iterations, then 0.1, divided by ten at 32,000 and at 48,000. Images are padded by 4 pixels, cropped and
flipped at random. All modes of a seed start from the same weights and see the same batches.

Every run writes a JSON file with one record per epoch, and a checkpoint: the same command continues where it
was interrupted, and skips what is finished. Seeds and modes may be added later. All runs in the directory
together give table.md and curves.png.

Examples:

    python tools/train_cifar.py --data data --out runs/20
    python tools/train_cifar.py --data data --out runs/164 --depth 164 --modes plain,8,4 --seeds 0,1,2
    python tools/train_cifar.py --data data --out runs/try --depth 8 --epochs 1 --limit 1024 --lowering eager
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Annotated, Any, Literal

import matplotlib as mpl
import torch
import typer
from cifar10 import DataError, Split, load
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.demo.model import preact_resnet
from fxapprox.measure import stored_bytes

MIB = 2**20
PAPER_ITERATIONS = 64_000
PAPER_RATES = ((400, 0.1), (32_000, 1.0), (48_000, 0.1), (64_000, 0.01))  # until this iteration, times --lr
CHANNELS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # mean and standard deviation of R, G, B
PADDING = 4
EVALUATION_BATCH = 500
REPORT_EVERY = 20
BOTTLENECK_FROM_DEPTH = 164
LABELS = {"plain": "torch.compile", "exact": "fxapprox exact", "8": "8 bits", "4": "4 bits", "2": "2 bits"}
COLOURS = {"plain": "#7f7f7f", "exact": "#1b1b1b", "8": "#0072b2", "4": "#d55e00", "2": "#009e73"}
MODES = tuple(LABELS)


class Lowering(str, Enum):
    """How the compiled graphs run."""

    inductor = "inductor"
    eager = "eager"


class RunError(ValueError):
    """The output directory belongs to other runs, or holds a damaged file; the message names it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run, mode and seed aside."""

    depth: int
    block: Literal["basic", "bottleneck"]
    epochs: int
    batch: int
    limit: int | None
    learning_rate: float
    momentum: float
    weight_decay: float
    lowering: str

    def rate(self, progress: float) -> float:
        """The learning rate after this fraction of all iterations, 0 to less than 1."""
        iteration = progress * PAPER_ITERATIONS
        return self.learning_rate * next(factor for until, factor in PAPER_RATES if iteration < until)


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean cross-entropies, accuracies as fractions, the last learning rate, training time."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float


@dataclass
class Run:
    """One mode and seed.

    Attributes:
        mode: one of `MODES`.
        seed: decides weights and batches.
        recipe: shared by all runs.
        stored_bytes: held for backward in the first step.
        epochs: what is done.
    """

    mode: str
    seed: int
    recipe: Recipe
    stored_bytes: int = 0
    epochs: list[Epoch] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.mode}-seed{self.seed}"

    @property
    def finished(self) -> bool:
        return len(self.epochs) >= self.recipe.epochs


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


def normalized(images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) as float32 with zero mean and unit variance per channel over CIFAR-10."""
    mean, deviation = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in CHANNELS)
    return (images / 255 - mean) / deviation


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
    restore(trainer, out)
    steps = len(train) // run.recipe.batch
    bar = bars.add_task(run.name, total=run.recipe.epochs * steps, numbers="compiling")
    bars.advance(bar, len(run.epochs) * steps)
    while not run.finished:
        trained = train_epoch(trainer, train, lambda loss, accuracy: advance(bars, bar, loss, accuracy))
        run.epochs.append(Epoch(epoch=len(run.epochs) + 1, **trained, **evaluate(trainer.network, test)))
        save(trainer, out)


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


# Files: recipe.json for the directory; MODE-seedN.json and MODE-seedN.pt for each run; table.md, curves.png


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file, and moves it to `path` when it is complete."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); delete it and run again") from error


def claim(out: Path, recipe: Recipe) -> None:
    """Creates the output directory, or checks that its runs follow the same recipe."""
    out.mkdir(parents=True, exist_ok=True)
    path, wanted = out / "recipe.json", asdict(recipe)
    if not path.exists():
        return write_text(path, json.dumps(wanted, indent=1))
    found = read_json(path)
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        differences = "; ".join(f"{key} {found.get(key)}, not {wanted[key]}" for key in changed)
        raise RunError(f"{out} holds runs with {differences}: choose another --out")


def save(trainer: Trainer, out: Path) -> None:
    """Checkpoint and JSON file of a run."""
    network, optimizer = trainer.network.state_dict(), trainer.optimizer.state_dict()
    state = {"run": asdict(trainer.run), "network": network, "optimizer": optimizer}
    write_atomically(out / f"{trainer.run.name}.pt", lambda path: torch.save(state, path))
    write_text(out / f"{trainer.run.name}.json", as_json(trainer.run))


def restore(trainer: Trainer, out: Path) -> None:
    """Continues a run from its checkpoint; without one it starts anew, whatever its JSON file says."""
    path = out / f"{trainer.run.name}.pt"
    trainer.run.epochs, trainer.run.stored_bytes = [], 0
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
    except Exception as error:  # it has no common base class
        raise RunError(f"{path}: damaged ({error}); delete it to start this run again") from error
    trainer.network.load_state_dict(state["network"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    adopt(trainer.run, state["run"])
    save(trainer, out)


def recorded(run: Run, out: Path) -> Run:
    """The run, with what its JSON file says is done."""
    path = out / f"{run.name}.json"
    if path.exists():
        try:
            adopt(run, read_json(path))
        except (KeyError, TypeError) as error:
            raise RunError(f"{path}: not the record of a run ({error!r}); delete it and run again") from error
    return run


def adopt(run: Run, record: dict[str, Any]) -> None:
    """Takes over stored bytes and epochs of a record, where None is a number that was not finite."""
    run.stored_bytes = record["stored_bytes"]
    run.epochs = [Epoch(**with_nan(epoch)) for epoch in record["epochs"]]


def with_nan(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch's record with nan for None."""
    return {key: math.nan if value is None else value for key, value in epoch.items()}


def as_json(run: Run) -> str:
    """A run as JSON, with null for numbers that are not finite."""
    record = asdict(run)
    record["epochs"] = [with_none(epoch) for epoch in record["epochs"]]
    return json.dumps(record, indent=1, allow_nan=False)


def with_none(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch's record with None for what is not finite."""
    return {key: value if math.isfinite(value) else None for key, value in epoch.items()}


# Results


def write_results(out: Path, recipe: Recipe) -> None:
    """The table and the curves of all runs in the directory."""
    names = sorted(path.stem.split("-seed") for path in out.glob("*-seed*.json"))
    runs = [recorded(Run(mode, int(seed), recipe), out) for mode, seed in names]
    write_text(out / "table.md", table(runs))
    write_atomically(out / "curves.png", lambda path: plot(runs, path))


def by_mode(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that have begun, grouped by mode."""
    groups = {mode: [run for run in runs if run.mode == mode and run.epochs] for mode in MODES}
    return {mode: group for mode, group in groups.items() if group}


def table(runs: list[Run]) -> str:
    """A Markdown table with one row per mode; ratios are to the first row."""
    groups, recipe = by_mode(runs), runs[0].recipe
    reference = next(iter(groups.values()))[0].stored_bytes
    head = "mode|seeds|epochs|stored, MiB|ratio|train loss|test loss|test accuracy, %|s per epoch".split("|")
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += [f"| {' | '.join(cells(group, reference))} |" for group in groups.values()]
    note = f"ResNet-{recipe.depth}, {recipe.epochs} epochs, batch {recipe.batch}; last epoch, ± over seeds."
    return "\n".join([*lines, "", note, ""])


def cells(runs: list[Run], reference: int) -> list[str]:
    """The table's cells for the runs of one mode."""
    last = [run.epochs[-1] for run in runs]
    return [
        LABELS[runs[0].mode],
        str(len(runs)),
        str(min(epoch.epoch for epoch in last)),
        f"{runs[0].stored_bytes / MIB:.1f}",
        f"{runs[0].stored_bytes / reference:.3f}",
        spread([epoch.train_loss for epoch in last], ".4f"),
        spread([epoch.test_loss for epoch in last], ".4f"),
        spread([100 * epoch.test_accuracy for epoch in last], ".2f"),
        f"{median(epoch.seconds for run in runs for epoch in run.epochs):.1f}",
    ]


def spread(values: list[float], form: str) -> str:
    """Mean, and the sample standard deviation where there is one."""
    return format(fmean(values), form) + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def plot(runs: list[Run], path: Path) -> None:
    """Training loss and test accuracy: a line for the mean over seeds, a band from lowest to highest."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for mode, group in by_mode(runs).items():
            curve(left, mode, [[epoch.train_loss for epoch in run.epochs] for run in group])
            curve(right, mode, [[100 * epoch.test_accuracy for epoch in run.epochs] for run in group])
        left.set(title="Training loss", xlabel="epoch", yscale="log")
        right.set(title="Test accuracy, %", xlabel="epoch")
        left.yaxis.set(major_formatter="{x:g}", minor_formatter=LogFormatter())
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25, linewidth=0.6)
        right.legend(frameon=False, loc="lower right")
        figure.suptitle(f"CIFAR-10, pre-activation ResNet-{runs[0].recipe.depth}", weight="bold")
        figure.savefig(path, dpi=150, format="png")


def curve(axes: Axes, mode: str, series: list[list[float]]) -> None:
    """One mode's line and band, as far as all its seeds have come."""
    columns = list(zip(*series, strict=False))
    epochs = range(1, len(columns) + 1)
    mean = [fmean(column) for column in columns]
    dashes, marker = "--" if mode == "plain" else "-", "" if len(columns) > 1 else "o"
    axes.plot(epochs, mean, dashes, marker=marker, color=COLOURS[mode], label=LABELS[mode], linewidth=1.6)
    low, high = [min(column) for column in columns], [max(column) for column in columns]
    axes.fill_between(epochs, low, high, color=COLOURS[mode], alpha=0.15, linewidth=0)


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


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(help=(__doc__ or "").replace("Examples:\n", "\b\nExamples:"))
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
    recipe = Recipe(depth, chosen_block(depth), epochs, batch, limit, lr, 0.9, 2e-4, lowering.value)
    runs = [Run(mode, seed, recipe) for seed in chosen_seeds(seeds) for mode in chosen_modes(modes)]
    console = Console()
    try:
        train_all(runs, data, out, chosen_device(device), console)
    except (DataError, RunError) as error:
        console.print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
