"""Gradient error of encoded checkpoint boundaries, with forward's decisions kept and without: a markdown table.

Without (the naive way), a segment that is computed again from an approximate boundary takes its own branches, and its
own statistics. Errors are relative, over all parameters, of one step at initialization, run eagerly, against the exact
partition. The stored bytes are those that the autograd graph holds.

Examples:

    python -m tools.errors checkpoint
    python -m tools.errors checkpoint --models resnet-20,gpt --segments 4
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.progress import track

import fxapprox
from fxapprox.amounts import size_text
from fxapprox.analysis.rerun_approximate import Branches
from fxapprox.measure.memory import stored_bytes
from tools.errors.model import resnet
from tools.harness import head, line, select
from tools.zoo import models
from tools.zoo.models import Case
from tools.zoo.training import forward, gradients, relative, unrewritten

CASES = {
    "pre-activation ResNet-20, batch 16": lambda: resnet(20, 16),
    "pre-activation ResNet-56, batch 16": lambda: resnet(56, 16),
    "pre-activation ResNet-110, batch 16": lambda: resnet(110, 16),
    "U-Net, GroupNorm and SiLU": models.unet,
    "GPT, 6 layers": lambda: models.gpt(layers=6, batch=8),
}
WAYS: dict[str, dict[str, Any]] = {
    "no checkpoints": {},
    "exact boundaries": {"checkpoint": True},
    "8-bit boundaries": {"checkpoint": True, "checkpoint_bits": 8},
    "8-bit boundaries, naive": {"checkpoint": True, "checkpoint_bits": 8},
}


@contextmanager
def deciding_again() -> Iterator[None]:
    """Keeps no decision and no statistic of forward's."""
    with mock.patch("fxapprox.passes.checkpoint.branches_of", return_value=Branches()):
        yield


def measured(case: Case, exact: torch.Tensor, way: str, bits: int, segments: int) -> str:
    """Error and stored bytes, as a cell."""
    torch.compiler.reset()
    options = {**WAYS[way], "bits": bits, "lowering": "eager", "strict": True}
    if "checkpoint" in options:
        options["checkpoint"] = segments
    compiled = fxapprox.compile(case.model, **options)
    with deciding_again() if "naive" in way else nullcontext():
        loss = forward(case, compiled)
    held = stored_bytes(loss, [*case.model.parameters(), *case.model.buffers(), *case.args])
    loss.backward()
    return f"{relative(gradients(case.model), exact):.2%}, {size_text(held)}"


def main(
    models_: Annotated[str, typer.Option("--models", help="Only models whose names contain one of these.")] = "",
    segments: Annotated[int, typer.Option(min=2, help="How many segments.")] = 8,
    bits: Annotated[int, typer.Option(help="Of the activations inside the segments: 8, 4 or 2.")] = 8,
) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    rows = []
    for name in track(select(CASES, models_), description="measuring"):
        case = CASES[name]()
        loss = forward(case, unrewritten(case.model))
        loss.backward()
        exact = gradients(case.model)
        rows.append([name, *(measured(case, exact, way, bits, segments) for way in WAYS)])
    typer.echo(head(f"model; {bits} bits, {segments} segments: error, stored", *WAYS, texts=1 + len(WAYS)))
    for row in rows:
        typer.echo(line(*row))
