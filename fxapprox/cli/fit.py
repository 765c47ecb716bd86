"""``fxapprox fit``: the largest batch for an amount of memory."""

from __future__ import annotations

from typing import Annotated

import typer

from fxapprox.cli.terminal import Target, console, users_code


def fit(
    target: Target,
    memory: Annotated[str, typer.Option(help="What a training step may take: 8GiB, 512MiB, 2GB.")],
    optimizer_bytes: Annotated[
        int, typer.Option(min=0, help="State for each element of a trained parameter: 4 for momentum, 8 for Adam.")
    ] = 0,
) -> None:
    """Show the largest batch that fits into an amount of memory, stored in several ways, without running a step.

    TARGET's factory takes no arguments and returns (model, args) or (model, args, loss_fn). The batch is the first
    dimension of the first argument, and of every argument and every target in the loss where it has the same size.

    \b
    Examples:
        fxapprox fit train.py:make_model --memory 8GiB
        fxapprox fit mypackage.models:resnet --memory 512MiB --optimizer-bytes 8
    """
    from fxapprox.amounts import parse_bytes
    from fxapprox.frontend.target import load, running
    from fxapprox.measure.fit.resize import largest_batches
    from fxapprox.measure.fit.table import batches_table

    limit = parse_bytes(memory, "--memory")
    with users_code("tracing at several batches"):
        loaded = load(target)
        with running(loaded):
            rows = largest_batches(loaded, limit, optimizer_bytes)
    console().print(batches_table(limit, rows))
