"""How many times fewer bytes are stored for backward than by plain torch.compile, over a zoo of models; planned bytes.

Nothing is run: the models are traced on fake tensors, the loss with them. With --top the largest values that are still
stored at 4 bits, and why.

Examples:

    python -m tools.stored_bytes
    python -m tools.stored_bytes --models llama,t5 --top 3
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.progress import track

import fxapprox
from fxapprox.amounts import size_text
from tools.harness import select
from tools.zoo import models
from tools.zoo.models import Case
from tools.zoo.models.benchmarks import (
    bert,
    classifier,
    convnext,
    images,
    llama,
    mobilenet,
    preact,
    resnet_50,
    t5,
    vit,
)  # fmt: skip
from tools.zoo.models.mobilenet_v3 import LARGE, SMALL, mobilenet_v3

BITS = (4, 8, None)


# name: (model, floors at 4 bits, 8 bits, exact mode: what a good plan must reach; None: no floor)
ZOO: dict[str, tuple[Callable[[], Case], tuple[float, float, float] | None]] = {
    "pre-activation ResNet-110": (lambda: preact(110), (15, 7.7, 1.9)),
    "pre-activation ResNet-164": (lambda: preact(164, bottleneck=True), (15, 7.7, 1.9)),
    "ResNet-50, max-pool stem, 64x64": (resnet_50, (9, 4.6, 1.3)),
    "U-Net, GroupNorm and SiLU": (lambda: models.unet(batch=8, width=32), (13, 6.8, 1.8)),
    "GPT, 4 layers, width 128": (lambda: models.gpt(batch=16, layers=4, width=128, vocab=256), (8, 5.5, 1.5)),
    "ViT, 4 layers, width 192": (vit, (8, 5.5, 1.5)),
    "ConvNeXt": (convnext, (12, 6.5, 1.75)),
    "Llama shape, width 384, vocabulary 8192": (llama, (8, 5, 1.3)),
    "Llama shape, width 384, vocabulary 50257": (lambda: llama(vocab=50257), None),
    "BERT shape, width 256, dropout 0.1, vocabulary 8192": (bert, None),
    "MobileNetV2": (mobilenet, None),
    "MobileNetV3-large": (lambda: classifier("mobilenet-v3-large", mobilenet_v3(LARGE), images(16, 64)), None),
    "MobileNetV3-small": (lambda: classifier("mobilenet-v3-small", mobilenet_v3(SMALL), images(16, 64)), None),
    "T5 shape, width 256, vocabulary 8192": (t5, None),
}  # fmt: skip


def report_of(case: Case, bits: int | None) -> fxapprox.Report:
    """The plan for a model together with its loss."""
    torch.compiler.reset()
    return fxapprox.explain(lambda *args: case.loss(case.model(*args)), *case.args, bits=bits, strict=True)


def row(name: str, reports: list[fxapprox.Report], floors: tuple[float, float, float] | None) -> str:
    """One line of the table; a ratio under its floor is marked."""
    cells = []
    for report, floor in zip(reports, floors or (0, 0, 0), strict=True):
        missed = " (missed)" if round(report.ratio, 2) < floor else ""
        cells.append(f"{report.ratio:.2f}" + (f" / {floor:g}{missed}" if floors else ""))
    return f"| {name} | {size_text(reports[0].baseline_bytes)} | {' | '.join(cells)} |"


def largest(name: str, report: fxapprox.Report, count: int) -> list[str]:
    """What is still stored, largest first."""
    kept = sorted(report.decisions, key=lambda d: -d.bytes_after)[:count]
    return [
        f"{name}: {d.value} {list(d.shape)} in {d.module or 'the loss'}: {d.storage}, {size_text(d.bytes_after)};"
        f" {d.reason}"
        for d in kept
    ]


def main(
    only: Annotated[str, typer.Option("--models", help="comma-separated parts of names")] = "",
    top: Annotated[int, typer.Option(min=0, help="also the largest values stored at 4 bits")] = 0,
) -> None:
    """Prints the table."""
    rows, details = [], []
    for name in track(select(ZOO, only), description="models"):
        torch.manual_seed(0)
        build, floors = ZOO[name]
        reports = [report_of(build(), bits) for bits in BITS]
        rows.append(row(name, reports, floors))
        details += largest(name, reports[0], top)
    print("| model | torch.compile stores | 4 bits / floor | 8 bits / floor | exact mode / floor |")
    print("|---|---:|---:|---:|---:|")
    print("\n".join([*rows, "", *details]).rstrip())


if __name__ == "__main__":
    typer.run(main)
