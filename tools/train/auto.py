"""Training curves of bits="auto" beside exact mode, 3 and 2 bits everywhere: a small ResNet and a small GPT.

All data is generated: the demonstration's shapes, and text in which each token follows from one of the two before it.
All modes of a model start from the same weights, see the same batches and are run eagerly; "auto" is calibrated on
the first batch, at initialization. How far two exact runs come apart by chance shows "exact, nudged": its weights
begin 0.01% away. Writes curves.json and curves.png, and prints a table.

Examples:

    python -m tools.train auto --out docs/results/auto-bits
    python -m tools.train auto --out runs/try --models gpt --steps 20
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import matplotlib as mpl
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.amounts import size_text
from fxapprox.demo.data import generate
from fxapprox.demo.model import preact_resnet
from tools.errors.auto import all_in
from tools.harness import head, select
from tools.zoo.models import GPT

COLOURS = {
    "exact": "#1b1b1b",
    "exact, nudged": "#a0a0a0",
    "auto, average 4": "#0072b2",
    "auto, average 3": "#d55e00",
    "all in 3 bits": "#cc79a7",
    "all in 2 bits": "#009e73",
}
MODES = tuple(COLOURS)
NUDGE = 1e-4  # relative
BATCH, SEQUENCE, VOCABULARY = 16, 64, 64
SMOOTHED = 20  # steps

Batch = tuple[Tensor, Tensor]


class Classifier(nn.Module):
    """The quick demonstration's network with its loss: images (N, 3, 32, 32) and labels (N,) to mean cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.network = preact_resnet(6, width=8, stages=2)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images), labels)


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        build: the model, from inputs and targets to the loss.
        batches: that many.
        optimizer: for the model.
    """

    build: Callable[[], nn.Module]
    batches: Callable[[int], list[Batch]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]


@dataclass
class Curve:
    """One mode's training.

    Attributes:
        mode: one of `MODES`.
        average_bits: over the elements of what is stored with loss; None in exact mode.
        stored_bytes: the plan's.
        losses: of all steps.
    """

    mode: str
    average_bits: float | None
    stored_bytes: int
    losses: list[float]


def shapes(count: int) -> list[Batch]:
    """Images of the demonstration's shapes, none of them twice."""
    data = generate(count * BATCH, seed=0)
    return list(zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True))


def sentences(count: int) -> list[Batch]:
    """Tokens and their successors, each of shape (BATCH, SEQUENCE)."""
    text = generate_text(count * BATCH, SEQUENCE + 1, VOCABULARY, seed=0)
    return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in text.split(BATCH)]


def generate_text(count: int, length: int, vocabulary: int, *, seed: int) -> Tensor:
    """Token sequences (count, length): each token follows, at random, from the last one or from the one before that.

    Either way there are four successors, with probabilities 8/15, 4/15, 2/15 and 1/15, drawn once for each token. So
    the best guess from the last token alone is no good, and a model has to look back.
    """
    rng = torch.Generator().manual_seed(seed)
    successors = torch.stack([torch.randperm(vocabulary, generator=rng) for _ in range(8)]).view(2, 4, vocabulary)
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0])
    lag = torch.randint(2, (count, length), generator=rng)
    choice = torch.multinomial(weights, count * length, replacement=True, generator=rng).view(count, length)
    text = torch.randint(vocabulary, (count, length), generator=rng)
    for t in range(2, length):
        before = torch.where(lag[:, t] == 0, text[:, t - 1], text[:, t - 2])
        text[:, t] = successors[lag[:, t], choice[:, t], before]
    return text


TASKS = {
    "ResNet-6, ten shapes": Task(
        Classifier, shapes, lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    ),
    "GPT, 2 layers, width 64, generated text": Task(
        lambda: GPT(2, 64, 2, SEQUENCE, VOCABULARY),
        sentences,
        lambda model: torch.optim.AdamW(model.parameters(), 3e-3),
    ),
}


def options_of(mode: str, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What to compile the model with."""
    if mode.startswith("exact"):
        return {"bits": None}
    if mode.startswith("all in"):
        return {"policy": all_in(int(mode.split()[2]))}
    measured = fxapprox.calibrate(model, None, batch, progress=False)
    return {"bits": "auto", "average_bits": float(mode.split()[-1]), "sensitivities": measured}


def train(task: Task, mode: str, batches: list[Batch], progress: Progress, bar: TaskID) -> Curve:
    """One mode, from the weights of seed 0."""
    torch.manual_seed(0)
    torch.compiler.reset()
    model = task.build()
    if mode == "exact, nudged":
        nudge(model)
    optimizer = task.optimizer(model)
    options = options_of(mode, model, batches[0])
    torch.compiler.reset()
    run = fxapprox.compile(model, lowering="eager", strict=True, dynamic=False, **options)
    losses = []
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = run(*batch)
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 5))
        progress.update(bar, advance=1, description=f"{mode}: loss {losses[-1]:.3f}")
    (report,) = fxapprox.reports(run)
    return Curve(mode, report.average_bits, report.saved_bytes, losses)


@torch.no_grad()
def nudge(model: nn.Module) -> None:
    """Multiplies each weight by 1 plus a normal random number of deviation `NUDGE`."""
    for parameter in model.parameters():
        parameter.mul_(1 + NUDGE * torch.randn_like(parameter))


def smooth(losses: list[float], steps: int = SMOOTHED) -> list[float]:
    """Means over the last steps, as many as there are at the beginning."""
    return [fmean(losses[max(0, end - steps) : end]) for end in range(1, len(losses) + 1)]


def table(curves: dict[str, list[Curve]]) -> str:
    """Bits, bytes and the mean loss over the last tenth of the steps, in Markdown."""
    lines = [head("model", "mode", "bits an element", "stored", "final loss", "beside exact", texts=2)]
    for name, group in curves.items():
        reference = final(group[0])
        for curve in group:
            bits = "" if curve.average_bits is None else f"{curve.average_bits:.2f}"
            lines.append(
                f"| {name} | {curve.mode} | {bits} | {size_text(curve.stored_bytes)} | {final(curve):.4f} |"
                f" {final(curve) - reference:+.4f} |"
            )
    return "\n".join(lines)


def final(curve: Curve) -> float:
    """Mean loss over the last tenth of the steps."""
    return fmean(curve.losses[-max(1, len(curve.losses) // 10) :])


def plot(curves: dict[str, list[Curve]], path: Path) -> None:
    """For each model the losses, and below how far they are from the first mode's."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.6 * len(curves), 6.4), layout="constrained")
        columns = figure.subplots(2, len(curves), sharex=True, squeeze=False, height_ratios=(3, 2)).T
        for (name, group), (top, bottom) in zip(curves.items(), columns, strict=True):
            draw(group, top, bottom)
            top.set(title=name, ylabel=f"training loss, mean of {SMOOTHED} steps")
            bottom.set(xlabel="step", ylabel="loss less that of exact mode")
        figure.savefig(path, dpi=130, format="png")


def draw(group: list[Curve], top: Axes, bottom: Axes) -> None:
    """One model's curves; the last mode, the worst by far, may leave the lower axes."""
    reference = smooth(group[0].losses)
    shown = [0.0]
    for curve in group:
        label = f"{curve.mode} ({curve.average_bits:.2f} bits)" if curve.mode.startswith("auto") else curve.mode
        losses = smooth(curve.losses)
        distances = [a - b for a, b in zip(losses, reference, strict=True)]
        steps = range(1, len(losses) + 1)
        style = {"color": COLOURS[curve.mode], "linewidth": 1.5}
        top.plot(steps, losses, "--" if curve is group[0] else "-", label=label, **style)
        bottom.plot(steps, distances, **style)
        if curve is not group[-1]:
            shown += filter(math.isfinite, distances)
    margin = 0.1 * (max(shown) - min(shown)) or 0.1
    bottom.set_ylim(min(shown) - margin, max(shown) + margin)
    top.legend(frameon=False, fontsize=8.5, labelspacing=0.25)
    for axes in (top, bottom):
        axes.grid(alpha=0.25, linewidth=0.6)


def as_json(curves: dict[str, list[Curve]]) -> str:
    """The curves, a line for each, with null for losses that are not finite."""
    groups = []
    for name, group in curves.items():
        records = [asdict(curve) for curve in group]
        for record in records:
            record["losses"] = [loss if math.isfinite(loss) else None for loss in record["losses"]]
        lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
        groups.append(f"{json.dumps(name)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(groups) + "\n}\n"


def main(
    out: Annotated[Path, typer.Option(help="directory for curves.json and curves.png")],
    only: Annotated[str, typer.Option("--models", help="comma-separated parts of names")] = "",
    steps: Annotated[int, typer.Option(min=1, help="training steps")] = 300,
) -> None:
    """Trains, and writes curves."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "average_bits=.* cannot be had")  # the table says what came of it
    chosen, curves = select(TASKS, only), {}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(chosen) * len(MODES) * steps)
        for name in chosen:
            batches = TASKS[name].batches(steps)
            curves[name] = [train(TASKS[name], mode, batches, progress, bar) for mode in MODES]
    out.mkdir(parents=True, exist_ok=True)
    (out / "curves.json").write_text(as_json(curves), encoding="utf-8")
    plot(curves, out / "curves.png")
    print(table(curves))
