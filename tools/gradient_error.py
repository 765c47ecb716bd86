"""Gradient error and stored bytes of the networks that the design measures itself by, as a markdown table.

Errors are relative, over all parameters, at initialization, against the exact partition; graphs run eagerly.

Examples:

    python -m tools.gradient_error
    python -m tools.gradient_error --models resnet-20,gpt
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.progress import track
from torch import nn

import fxapprox
from tests import models
from tests.models import Case
from tests.training import relative, step, unrewritten

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
    "GPT-2 shape (transformers)": models.gpt2,
    "Llama shape (transformers)": models.llama,
    "BERT shape (transformers), dropout 0.1": models.bert,
}


def row(case: Case) -> list[str]:
    """Cells: error and ratio for each number of bits."""
    torch.compiler.reset()
    exact = step(case, unrewritten(case.model))
    cells = []
    for bits in BITS:
        torch.compiler.reset()
        run = fxapprox.compile(case.model, bits=bits, lowering="eager", strict=True)
        found = step(case, run)
        assert torch.equal(found[0], exact[0]), "forward changed"
        (report,) = fxapprox.reports(run)
        cells.append(f"{relative(found[1], exact[1]):.2%} / {report.ratio:.1f}x")
    return cells


def main(only: Annotated[str, typer.Option("--models", help="comma-separated parts of names")] = "") -> None:
    """Prints the table."""
    wanted = [part.lower() for part in only.split(",") if part]
    names = [name for name in CASES if not wanted or any(part in name.lower() for part in wanted)]
    rows = [(name, row(CASES[name]())) for name in track(names, description="models")]
    print("| model | exact mode | 8 bits | 4 bits | 2 bits |\n|---|---|---|---|---|")
    for name, cells in rows:
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
