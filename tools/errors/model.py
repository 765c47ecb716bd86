"""Gradient error and stored bytes of the networks that the design measures itself by, as a markdown table.

Errors are relative, over all parameters, of one step at initialization, or from a checkpoint of ``tools.train cifar``.
Run eagerly (the default), the reference is the exact partition, run eagerly as well, and stored bytes are the plan's.
Compiled by Inductor, the reference is plain torch.compile, stored bytes are those that the autograd graphs hold, and
each cell says whether the loss has the same bits.

Examples:

    python -m tools.errors model
    python -m tools.errors model --models resnet-20,gpt
    python -m tools.errors model --models resnet-20,gpt,u-net,mlp --lowering inductor
    python -m tools.errors model --checkpoint runs/20/exact-seed0.pt --data data
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.demo.model import preact_resnet
from fxapprox.measure.memory import stored_bytes
from tools.harness import Lowering, head, line, select
from tools.train.data import load, normalized
from tools.zoo import models
from tools.zoo.models import Case
from tools.zoo.training import forward, gradients, relative, unrewritten

BITS = (None, 8, 4, 2)


def resnet(depth: int, batch: int) -> Case:
    """BatchNorm weights uniform in 0.5..1.5, biases normal with deviation 0.3."""
    case = models.demo_resnet(depth=depth, batch=batch)
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return case


CASES = {
    "pre-activation ResNet-20, batch 64": lambda: resnet(20, 64),
    "pre-activation ResNet-110, batch 16": lambda: resnet(110, 16),
    "GPT, 4 layers, width 128, sequence 64": lambda: models.gpt(layers=4, width=128, sequence=64, vocab=256),
    "U-Net, GroupNorm and SiLU": models.unet,
    "MLP with dropout": models.mlp_dropout,
    "GPT-2 shape (transformers)": models.gpt2,
    "Llama shape (transformers)": models.llama,
    "BERT shape (transformers), dropout 0.1": models.bert,
}


def trained(checkpoint: Path, data: Path) -> dict[str, Callable[[], Case]]:
    """The network of a run of ``tools.train cifar``, on the first 128 training images."""
    run = torch.load(checkpoint, weights_only=True)

    def build() -> Case:
        model = preact_resnet(run["run"]["recipe"]["depth"], block=run["run"]["recipe"]["block"])
        model.load_state_dict(run["network"])
        train, _ = load(data)
        labels = train.labels[:128]
        return Case("trained", model, (normalized(train.images[:128]),), lambda scores: F.cross_entropy(scores, labels))

    epochs = len(run["run"]["epochs"])
    return {f"ResNet-{run['run']['recipe']['depth']} after {epochs} epochs ({run['run']['mode']}), batch 128": build}


def row(case: Case, lowering: Lowering) -> list[str]:
    """A cell for each number of bits: error, times less stored, and under Inductor whether the loss is the same."""
    torch.compiler.reset()
    reference = measure(case, unrewritten(case.model) if lowering is Lowering.eager else torch.compile(case.model))
    cells = []
    for bits in BITS:
        torch.compiler.reset()
        run = fxapprox.compile(case.model, bits=bits, lowering=lowering.value, strict=True)
        found = measure(case, run)
        same = torch.equal(found.loss, reference.loss)
        error = f"{relative(found.gradients, reference.gradients):.2%}"
        if lowering is Lowering.eager:
            assert same, "forward changed"
            (report,) = fxapprox.reports(run)
            cells.append(f"{error} / {report.ratio:.1f}x")
        else:
            cells.append(f"{error} / {reference.held / found.held:.1f}x / {'same' if same else 'other'} loss")
    return cells


class Measured(NamedTuple):
    """What one step gave: the loss, all gradients, and the bytes held for backward."""

    loss: Tensor
    gradients: Tensor
    held: int


def measure(case: Case, run: Callable[..., Any]) -> Measured:
    """One step; parameters, buffers and inputs are not counted as held."""
    loss = forward(case, run)
    held = stored_bytes(loss, exclude=[*case.model.parameters(), *case.model.buffers(), *case.args])
    loss.backward()
    return Measured(loss.detach(), gradients(case.model), held)


def main(
    only: Annotated[str, typer.Option("--models", help="comma-separated parts of names")] = "",
    lowering: Annotated[Lowering, typer.Option(help="eager, or inductor: minutes a model")] = Lowering.eager,
    checkpoint: Annotated[Path | None, typer.Option(help="of train cifar: this network instead; wants --data")] = None,
    data: Annotated[Path | None, typer.Option(help="directory of CIFAR-10, for --checkpoint")] = None,
) -> None:
    """Prints the table."""
    if (checkpoint is None) != (data is None):
        raise typer.BadParameter("--checkpoint and --data go together")
    cases = CASES if checkpoint is None or data is None else trained(checkpoint, data)
    chosen = track(select(cases, only), description="models")
    rows = [(name, row(cases[name](), lowering)) for name in chosen]
    print(head("model", "exact mode", "8 bits", "4 bits", "2 bits", texts=5))
    for name, cells in rows:
        print(line(name, *cells))
