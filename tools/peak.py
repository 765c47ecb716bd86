"""The peak of a training step: predicted by our liveness model, and as the allocator saw it.

    python tools/peak.py --models gpt --modes plain,4

The loss is inside the compiled function. Parameters and inputs are not counted, gradients are. Every model is compiled
once for each mode, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.progress import track

import fxapprox
from fxapprox.amounts import size_text
from fxapprox.demo.model import preact_resnet
from fxapprox.measure.memory import peak_bytes, stored_bytes
from tools.selection import select
from tools.stored_bytes import classifier, images, vit
from tools.zoo import models
from tools.zoo.models import Case

ZOO: dict[str, Callable[[], Case]] = {
    "bottleneck ResNet-29": lambda: classifier("29", preact_resnet(29, block="bottleneck"), images(32, 32)),
    "basic ResNet-20": lambda: classifier("20", preact_resnet(20), images(32, 32)),
    "bottleneck ResNet-164": lambda: classifier("164", preact_resnet(164, block="bottleneck"), images(32, 32)),
    "GPT, 4 layers, width 128": lambda: models.gpt(batch=16, layers=4, width=128, vocab=256),
    "U-Net, width 32": lambda: models.unet(batch=8, width=32),
    "ViT, 4 layers, width 192": vit,
}


def row(name: str, case: Case, mode: str) -> str:
    """One line of the table."""
    torch.compiler.reset()

    def loss(*args: torch.Tensor) -> torch.Tensor:
        return case.loss(case.model(*args))

    bits = int(mode) if mode.isdigit() else None
    run = torch.compile(loss) if mode == "plain" else fxapprox.compile(loss, bits=bits, strict=True)
    report = fxapprox.explain(loss, *case.args, bits=bits)
    predicted = report.baseline_peak_bytes if mode == "plain" else report.peak_bytes
    exclude = [*case.model.parameters(), *case.model.buffers(), *case.args]

    def step() -> int:
        value = run(*case.args)
        stored = stored_bytes(value, exclude)
        value.backward()
        return stored

    step()
    case.model.zero_grad(set_to_none=True)
    real = peak_bytes(step)
    cells = (
        size_text(real.result),
        size_text(predicted),
        size_text(real.peak),
        f"{100 * (predicted / real.peak - 1):+.1f}%",
    )
    return f"| {name} | {mode} | {' | '.join(cells)} |"


def main(
    only: Annotated[str, typer.Option("--models", help="comma-separated parts of names")] = "",
    modes: Annotated[str, typer.Option(help="of plain (torch.compile), exact, 8, 4, 2")] = "plain,exact,8,4,2",
) -> None:
    """Prints the table, a line at a time."""
    print("| model | mode | stored | predicted peak | real peak | predicted against real |")
    print("|---|---|---:|---:|---:|---:|", flush=True)
    for name in track(select(ZOO, only), description="models"):
        for mode in modes.split(","):
            torch.manual_seed(0)
            print(row(name, ZOO[name](), mode), flush=True)


if __name__ == "__main__":
    typer.run(main)
