"""Proof that training arrives: every arm from the same seeds, to the plateau, with controls that must fail.

Seeds are outermost, so that what is stopped leaves complete pairs. A run that ends is a line of runs.jsonl; the same
command goes on with what is missing. runs.json, table.md and a picture for each task are made of all runs.

Examples:

    python -m tools.convergence --out docs/results/convergence --data ../shared/data/cifar10
    python -m tools.convergence --out runs/digits --tasks digits --seeds 2 --lowering eager
    python -m tools.convergence --out runs/gpu --tasks resnet-18,gpt-124m --device cuda --seeds 3
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from tools.convergence import records
from tools.convergence.arms import ARMS
from tools.convergence.plot import plot
from tools.convergence.records import Key, Run
from tools.convergence.results import groups, table
from tools.convergence.task import Place
from tools.convergence.tasks import TASKS
from tools.harness import Failed, Lowering, ResultsError, outcomes, write_atomically, write_text
from tools.train.data import DataError

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def chosen(table: Collection[str], text: str, default: Collection[str]) -> list[str]:
    """The names in a comma-separated list; the default if it is empty.

    Raises:
        typer.BadParameter: there is no such name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(default)
    if unknown := [name for name in names if name not in table]:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(table)}")
    return names


def wanted(
    tasks: Collection[str], arms: Collection[str], seeds: int | None, steps: int | None, place: Place, lowering: str
) -> list[Key]:
    """The keys of all runs, seeds outermost."""
    found = [
        Key(name, arm, seed, steps or task.steps, task.data(place).digest, lowering)
        for name in tasks
        for task in [TASKS[name]]
        for arm in arms
        if ARMS[arm].fits(task) and arm in (task.arms or ARMS)
        for seed in range(task.seeds if seeds is None else seeds)
    ]
    return sorted(found, key=lambda key: key.seed)


def made(keys: list[Key], processes: int, place: Place, device: str) -> Iterator[tuple[Key, Run | Failed]]:
    """Runs as they end, in so many processes; one that died goes on with its next run."""
    ended: queue.Queue[tuple[Key, Run | Failed]] = queue.Queue()
    options: dict[str, Any] = {"data": str(place.data), "out": str(place.out), "device": device}

    def work(share: list[Key]) -> None:
        made = outcomes("tools.convergence.run:records", map(asdict, share), environment=ONE_THREAD, **options)
        for key, record in zip(share, made, strict=True):
            ended.put((key, record if isinstance(record, Failed) else records.parsed(record)))

    for first in range(processes):
        threading.Thread(target=work, args=(keys[first::processes],), daemon=True).start()
    for _ in keys:
        yield ended.get()


def write_results(out: Path) -> None:
    """runs.json, the table, and the pictures, of all that is recorded."""
    runs = records.merge(out)
    write_text(out / "table.md", table(runs))
    for (task, steps, _, lowering), group in groups(runs).items():
        name = task if steps == TASKS[task].steps else f"{task}-{steps}-steps"
        write_atomically(out / f"{name}-{lowering}.png", lambda path, group=group: plot(group, path))


def train(keys: list[Key], processes: int, place: Place, device: str, console: Console) -> int:
    """Makes what is missing; returns how many runs failed."""
    done = {run.key for run in records.recorded(place.out)}
    missing, failed = [key for key in keys if key not in done], 0
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bars:
        bar = bars.add_task("runs", total=len(keys), completed=len(keys) - len(missing))
        for key, run in made(missing, processes, place, device):
            bars.advance(bar)
            name = f"{key.task}, {key.arm}, seed {key.seed}"
            if isinstance(run, Failed):
                failed += 1
                bars.console.print(f"{name}: {run.why}", highlight=False, markup=False)
                continue
            records.append(run, place.out)
            bars.console.print(f"{name}: loss {run.loss:.4f} in {run.total_seconds:.0f} s", highlight=False)
    return failed


def main(
    out: Annotated[Path, typer.Option(help="directory of the results; created, or continued")],
    tasks: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(TASKS)}; all but the large ones")] = "",
    arms: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(ARMS)}; all that fit")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="how many; else what each task has")] = None,
    data: Annotated[Path, typer.Option(help="directory of CIFAR-10")] = Path("../shared/data/cifar10"),
    steps: Annotated[int | None, typer.Option(min=1, help="in place of each task's own, to try")] = None,
    lowering: Annotated[Lowering, typer.Option(help="eager needs no C++ compiler; slower")] = Lowering.inductor,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    processes: Annotated[int, typer.Option(min=1, max=os.cpu_count() or 1, help="of one thread each")] = 1,
) -> None:
    """Trains what is missing, and writes the results."""
    console, place = Console(), Place(data, out)
    names = chosen(TASKS, tasks, [name for name, task in TASKS.items() if not task.large])
    out.mkdir(parents=True, exist_ok=True)
    try:
        keys = wanted(names, chosen(ARMS, arms, ARMS), seeds, steps, place, lowering.value)
        failed = train(keys, processes, place, device, console)
        write_results(out)
    except (DataError, ResultsError) as error:
        console.print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print((out / "table.md").read_text(encoding="utf-8"), soft_wrap=True, highlight=False, markup=False)
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
