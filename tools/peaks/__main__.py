"""The real peak of a training step under Inductor, by the allocator: fxapprox beside what torch has to make it smaller.

A step is forward and backward, without old gradients; it is measured when everything is compiled. All systems of a
model run in one process: one after the other first, then in turns for their step times. What a system cannot do, or
dies of, is its cell. Results are JSON, a file for each system of each model; the same command continues where it was
interrupted, at the model. All files together give table.md and peaks.png.

Examples:

    python -m tools.peaks --out docs/results/peaks
    python -m tools.peaks --out runs/peaks --models unet,resnet-18 --systems plain,fxapprox
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.budget.records import save
from tools.harness import Failed, outcomes, read_json, select, write_text
from tools.peaks.measure import Row, with_turns
from tools.peaks.models import MODELS, SYSTEMS
from tools.peaks.plot import plot
from tools.peaks.results import table


def saved(out: Path) -> list[Row]:
    """All rows of a directory."""
    return [Row(**read_json(path)) for path in sorted((out / "records").glob("*.json"))]


def measure(model: str, systems: Sequence[str], *, limit: float, rounds: int) -> list[Row]:
    """The rows of a model's systems; those that ran in a process before one that died have no times."""
    function = "tools.peaks.measure:records"
    *found, seconds = outcomes(function, [*systems, ""], seconds=limit, model=model, rounds=rounds)
    rows = [
        Row(model, system, "", failed=row.why) if isinstance(row, Failed) else Row(**row)
        for system, row in zip(systems, found, strict=True)
    ]
    return rows if isinstance(seconds, Failed) else with_turns(rows, seconds)


def main(
    out: Annotated[Path, typer.Option(help="directory of the results")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="steps of each system in turns")] = 9,
    limit: Annotated[float, typer.Option(help="seconds for all systems of a model")] = 7200,
    again: Annotated[bool, typer.Option("--again", help="measure what failed, or has no times, once more")] = False,
) -> None:
    """Measures what is missing, then writes the table and the picture."""
    wanted = select(SYSTEMS, systems)
    (out / "records").mkdir(parents=True, exist_ok=True)
    for model in select(MODELS, models):
        done = {row.system for row in saved(out) if row.model == model and (row.seconds or not again)}
        missing = [system for system in wanted if system not in done]
        if missing:
            Console().log(f"{model}: {', '.join(missing)}")
            for row in measure(model, missing, limit=limit, rounds=rounds):
                save(row, out)
        write_text(out / "table.md", table(saved(out)))
        plot(saved(out), out / "peaks.png")


if __name__ == "__main__":
    typer.run(main)
