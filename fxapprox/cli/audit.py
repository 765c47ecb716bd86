"""``fxapprox audit``: how far gradients are off, and why."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from fxapprox.cli.given import takes
from fxapprox.cli.terminal import Target, users_code
from fxapprox.options.parse import parse_several_bits


class AuditFormat(str, enum.Enum):
    """Output formats of audit."""

    table = "table"
    json = "json"


@takes("checkpoint", "checkpoint_bits", "rounding", "min_bytes", "lowering", lowering="eager")
def audit(
    target: Target,
    *,
    bits: Annotated[str, typer.Option(help="What to compare with exact: of 8, 4, 2, exact and auto.")] = "8,4,2",
    batches: Annotated[
        int, typer.Option(min=1, help="Parts of the batch that tell noise and bias apart; 1: do not.")
    ] = 4,
    top: Annotated[int, typer.Option(min=0, help="Parameters and stored values to show; 0: measure no values.")] = 5,
    format: Annotated[AuditFormat, typer.Option("--format", help="table, or json: every parameter and value.")] = (
        AuditFormat.table
    ),
    given: Mapping[str, Any],
    seed: Annotated[int, typer.Option(help="Seed of the random numbers that the model draws.")] = 0,
) -> None:
    """Measure how far gradients are from exact ones in 8, 4 and 2 bits, what of it is noise, and where it comes from.

    TARGET's factory takes no arguments and returns (model, args) or (model, args, loss_fn). Some training steps are run
    on its batch; tensors in loss_fn's closure with as many rows as the batch are split with it.

    \b
    Examples:
        fxapprox audit train.py:make_model
        fxapprox audit train.py:make_model --bits 8,4,auto --top 10
        fxapprox audit train.py:make_model --batches 8 --rounding stochastic
        fxapprox audit train.py:make_model --format json > audit.json
    """
    from fxapprox.frontend.target import load, nothing_stored, running
    from fxapprox.ir.source import breaks_text
    from fxapprox.measure.audit.run import audit as measured
    from fxapprox.measure.audit.text import WIDTH, audit_tables

    numbers = parse_several_bits(bits)
    with users_code():
        loaded = load(target)
    with users_code(), running(loaded):
        found = measured(
            loaded.model,  # type: ignore[arg-type]  # a function is an error that audit words
            loaded.loss, loaded.args, numbers, batches=batches, causes=top > 0, compile_loss=True, seed=seed,
            **given,
        )  # fmt: skip
    if not found.baseline_bytes:
        raise nothing_stored(loaded, breaks_text(found.breaks))
    if format is AuditFormat.json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        console.print(audit_tables(found, top=top))
