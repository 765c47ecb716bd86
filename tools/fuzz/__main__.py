"""Random programs under random options, against their joint graphs unsplit (``properties``: what is held against what).

A program that fails is shrunk, and printed as Python that a fixed test can hold. Ctrl-C ends the run with what it has.

Examples:

    python -m tools.fuzz --examples 20000 --seed 1
    python -m tools.fuzz --examples 20000 --seed 1 --done 6900
"""

from __future__ import annotations

import time
import warnings
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tools.fuzz.search import CHOICES, CHUNK, Found, search

PART = CHUNK * CHOICES  # examples from one seed of hypothesis's


def main(
    examples: Annotated[int, typer.Option(min=1, help="How many programs.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same programs.")] = 0,
    done: Annotated[int, typer.Option(min=0, help="Of these, run before: goes on where a run ended.")] = 0,
) -> None:
    """Runs the examples; exit status 1 if one fails."""
    if done % PART:
        raise typer.BadParameter(f"a run ends after a multiple of {PART} examples", param_hint="--done")
    torch.set_num_threads(1)  # sums come out in one order
    warnings.simplefilter("ignore")  # of torch's, about the programs; ours are looked at in each example
    started = time.monotonic()
    with Progress(TextColumn("fuzzing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=examples)
        told = 0

        def progress(found: Found) -> None:
            nonlocal told
            bar.update(task, completed=found.examples)
            for what, call in found.failures[told:]:
                bar.console.print(f"# {what}\n{call}", markup=False, highlight=False, soft_wrap=True)
            told = len(found.failures)

        found = search(examples, seed, progress, done=done)
        progress(found)
    for note, count in found.notes.most_common():
        typer.echo(f"{count} times: {note}")
    minutes = (time.monotonic() - started) / 60
    typer.echo(f"{found.examples} examples, seed {seed}: {len(found.failures)} failures, {minutes:.0f} minutes")
    raise typer.Exit(bool(found.failures))


if __name__ == "__main__":
    typer.run(main)
