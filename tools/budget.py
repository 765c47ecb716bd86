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

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.budget_models import MODELS, SYSTEMS
from tools.budget_records import Record, path_of, refused, save, saved
from tools.budget_results import write_results
from tools.budget_time import time_settings
from tools.selection import select

BUDGETS: tuple[str, ...] = tuple("0.9 0.8 0.7 0.6 0.5 0.4 0.3 0.25 0.2 0.15 0.1 0.05".split())


def settings(model: str, system: str) -> tuple[str, ...]:
    """What a system is measured at."""
    if system == "plain":
        return ("",)
    return tuple(MODELS[model].checkpoints) if system == "checkpoint" else BUDGETS


def measure(record: Record, out: Path, limit: float) -> None:
    """Has a process of its own write the record; writes a failed one if that fails."""
    command = [sys.executable, "-m", "tools.budget_worker", "measure", record.model, record.system, record.setting]
    error = failure([*command, "--out", str(out)], limit)
    if error:
        save(replace(record, failed=error), out)


def failure(command: list[str], limit: float) -> str:
    """Runs a command for at most so many seconds; why it failed, or ""."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    return last_line(done.stderr) if done.returncode else ""


def last_line(text: str) -> str:
    """The last line with something on it; frames of boxes are nothing."""
    return next((line.strip(" │") for line in reversed(text.splitlines()) if line.strip(" │╰╯─")), "no message")


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
            measure(record, out, limit)
        write_results(saved(out), out)
    write_results(saved(out), out)


if __name__ == "__main__":
    typer.run(main)
