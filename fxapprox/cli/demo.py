"""``fxapprox demo``: the same training four ways, side by side."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller network and fewer steps: one to three minutes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and batches.")] = 0,
) -> None:
    """Train a small ResNet on built-in images: plain torch.compile, exact mode, 8 and 4 bits, side by side.

    \b
    Examples:
        fxapprox demo
        fxapprox demo --quick --seed 1
    """
    from fxapprox.demo.run import run_demo

    run_demo(quick=quick, seed=seed, console=Console())
