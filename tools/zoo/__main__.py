"""The command: see the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.harness import write_text
from tools.zoo.names import chosen
from tools.zoo.processes import measure
from tools.zoo.rows import BATCHES, BITS, LOWERINGS, PRECISIONS, Row, Setting, append, load, settings
from tools.zoo.table import markdown
from tools.zoo.verdict import summary


def main(
    out: Annotated[Path, typer.Option(help="file of rows, one JSON object a line; what is there is not run again")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names, or module:builder; all if empty")] = "",
    bits: Annotated[str, typer.Option(help=f"of {','.join(BITS)}")] = ",".join(BITS),
    precision: Annotated[str, typer.Option(help=f"of {','.join(PRECISIONS)}")] = ",".join(PRECISIONS),
    batch: Annotated[str, typer.Option(help=f"of {','.join(BATCHES)}")] = ",".join(BATCHES),
    lowering: Annotated[str, typer.Option(help=f"of {','.join(LOWERINGS)}")] = ",".join(LOWERINGS),
    jobs: Annotated[int, typer.Option(min=1, help="models at once, each in a process")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="seconds for all settings of one model")] = 1800,
    rounds: Annotated[int, typer.Option(min=0, help="steps that are timed, of each setting")] = 3,
    table: Annotated[Path | None, typer.Option(help="write all rows of the file as Markdown")] = None,
    again: Annotated[bool, typer.Option("--again", help="run once more what failed")] = False,
) -> None:
    """Measures what is missing, and says how many rows are right."""
    wanted = settings(
        chosen(models),
        lowerings=named("--lowering", lowering, LOWERINGS),
        precisions=named("--precision", precision, PRECISIONS),
        batches=named("--batch", batch, BATCHES),
        bits=named("--bits", bits, BITS),
    )
    try:
        known = load(out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    todo = [setting for setting in wanted if setting not in known or (again and known[setting].failed)]
    run(todo, out, jobs=jobs, timeout=timeout, rounds=rounds)
    rows = load(out)
    if table is not None:
        write_text(table, markdown(list(rows.values())))
    print("\n".join(summary([rows[setting] for setting in wanted])))


def named(option: str, given: str, known: Sequence[str]) -> Iterable[str]:
    """The comma-separated names, in the order of those that there are.

    Raises:
        typer.BadParameter: there is no such name.
    """
    parts = [part.strip() for part in given.split(",") if part.strip()]
    for part in parts or [given]:
        if part not in known:
            raise typer.BadParameter(f"{option} {part!r}: expected some of {', '.join(known)}")
    return [name for name in known if name in parts]


def run(todo: Sequence[Setting], out: Path, *, jobs: int, timeout: float, rounds: int) -> None:
    """Measures, with a progress bar, and adds each row to the file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("rows", total=len(todo))

        def done(row: Row) -> None:
            append(row, out)
            bar.update(task, advance=1, description=row.setting.model)

        measure(todo, done, jobs=jobs, seconds=timeout, rounds=rounds)


if __name__ == "__main__":
    typer.run(main)
