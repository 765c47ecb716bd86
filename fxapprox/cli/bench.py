"""``fxapprox bench``: memory and time of a training step beside other ways to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxapprox.cli.terminal import Target, console
from fxapprox.options.parse import parse_systems


def bench(
    target: Target,
    systems: Annotated[
        str, typer.Option(help="Comma-separated names or parts of them: eager, compile, fxapprox-4; all if empty.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each system, taken in turn.")] = 15,
    device: Annotated[str, typer.Option(help="cpu, or a CUDA device.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Also write bench.json, bench.md and bench.png into this directory.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and random numbers.")] = 0,
) -> None:
    """Measure memory, step time, compile time and gradient error of a training step, beside other ways to run it.

    TARGET's factory takes no arguments and returns (model, args) or (model, args, loss_fn). Every system runs in a
    process of its own and is compiled without a cache, which takes minutes; then all take turns, two steps each, and
    the second is timed.

    \b
    Examples:
        fxapprox bench train.py:make_model
        fxapprox bench train.py:make_model --systems compile,fxapprox-8,fxapprox-4 --rounds 31
        fxapprox bench mypackage.models:resnet --device cuda --out results
    """
    from fxapprox.bench import run, show
    from fxapprox.bench.systems import SYSTEMS
    from fxapprox.files.written import make_folder, write_text

    found = run.bench(target, parse_systems(systems, tuple(SYSTEMS)), rounds=rounds, device=device, seed=seed)
    console().print(show.table(found))
    if out is not None:
        make_folder(out)
        write_text(out / "bench.json", found.to_json() + "\n")
        write_text(out / "bench.md", show.markdown(found))
        show.plot(found, out / "bench.png")
