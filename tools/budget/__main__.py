"""Memory budgets: real peak, predicted peak, gradient error and step time, beside torch's own budget and checkpoints.

Every measurement runs in a process of its own and writes a JSON file; the same command continues where it was
interrupted. All records in the directory together give table.md and budget.png. With --time the settings that fit each
budget below 0.5 are timed, all of a model in turns, and written to time.md.

Examples:

    python -m tools.budget --out docs/results/budget
    python -m tools.budget --out docs/results/budget --models unet,vit --systems plain,torch-budget
    python -m tools.budget --out docs/results/budget --time
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.budget.models import MODELS, SYSTEMS
from tools.budget.records import Record, in_process, path_of, refused, save, saved
from tools.budget.results import write_results
from tools.budget.turns import time_settings
from tools.harness import select

BUDGETS: tuple[str, ...] = tuple("0.9 0.8 0.7 0.6 0.5 0.4 0.3 0.25 0.2 0.15 0.1 0.05".split())


def settings(model: str, system: str) -> tuple[str, ...]:
    """What a system is measured at."""
    if system == "plain":
        return ("",)
    return tuple(MODELS[model].checkpoints) if system == "checkpoint" else BUDGETS


def main(
    out: Annotated[Path, typer.Option(help="directory of the results")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    limit: Annotated[float, typer.Option(help="seconds for one measurement")] = 7200,
    again: Annotated[bool, typer.Option("--again", help="measure what failed once more")] = False,
    time: Annotated[bool, typer.Option("--time", help="time what is recorded already, at equal real peak")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="with --time: steps of each setting")] = 9,
) -> None:
    """Measures what is missing, then writes table and plot."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    chosen = select(MODELS, models)
    if time:
        return time_settings(saved(out), chosen if models else chosen[:3], rounds, out, console)
    failed = {r.name for r in saved(out) if r.failed} if again else set()
    wanted = select(SYSTEMS, systems)
    todo = [Record(m, s, setting) for m in chosen for s in wanted for setting in settings(m, s)]
    for record in todo:
        if path_of(record, out).exists() and record.name not in failed:
            continue
        console.log(record.name)
        known = refused(saved(out), record)
        if known is not None:
            save(replace(record, failed=known.failed), out)
        else:
            save(in_process("tools.budget.measure:records", record, limit, out=str(out)), out)
        write_results(saved(out), out)
    write_results(saved(out), out)


if __name__ == "__main__":
    typer.run(main)
