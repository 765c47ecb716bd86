"""What fxapprox makes of documents, options and command lines that somebody, or a disk, has damaged.

Each example changes one that is valid: a saved plan, measured sensitivities, options as Python has them, in
FXAPPROX_OPTIONS or on the command line. It has to be refused with an error of ours, or to be taken for what it says:
written again, it is the same document. Some of those that are taken are compiled and run for a step (eager lowering):
an error of ours, or the loss of exact mode, bit by bit, and gradients that point where exact ones do.

Examples:

    python -m tools.mutations --examples 10000 --run 300 --seed 1
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tools.harness import head, line
from tools.mutations.search import KINDS, Found, search


def main(
    examples: Annotated[int, typer.Option(min=1, help="How many changed documents and sets of options.")] = 10000,
    runs: Annotated[
        int, typer.Option("--run", min=0, help="How many of the accepted ones are compiled and run.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same examples.")] = 0,
) -> None:
    """Runs the examples; exit status 1 if one fails."""
    found, told = Found(), 0
    with Progress(TextColumn("mutating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        for found in bar.track(search(examples, runs, seed), total=examples + runs):
            for failure in found.failures[told:]:
                bar.console.print(failure, markup=False, highlight=False)
            told = len(found.failures)
    results = ("refused", "accepted", "ran", "refused when compiled")
    typer.echo(head("kind", *results))
    for kind in KINDS:
        typer.echo(line(kind, *(str(found.counts[kind, result]) for result in results)))
    typer.echo(f"{examples} examples, {runs} compiled, seed {seed}: {len(found.failures)} failures")
    raise typer.Exit(bool(found.failures))


if __name__ == "__main__":
    typer.run(main)
