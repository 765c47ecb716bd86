"""How long compiling takes beside plain torch.compile, as a Markdown table.

Every compilation runs in a process of its own, without a cache; the systems of a model take turns. "wall" is the time
of the first step; "Python" the processor time of the process in it, without that of the C++ compiler, which runs in
others. Both are medians of the ratios of a round.

Examples:

    python -m tools.profile compile
    python -m tools.profile compile --models resnet_29,bert --systems fxapprox-4 --rounds 3
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.progress import track

from fxapprox.bench.run import Worker
from fxapprox.bench.systems import BASELINE, SYSTEMS
from fxapprox.options.parse import parse_systems
from tools.bench.models import MODELS
from tools.harness import head, line, select

TARGET = "tools.bench.models:{}"
WALL, PYTHON = "compile_seconds", "compile_cpu_seconds"


def compiled(target: str, system: str) -> dict[str, Any]:
    """What the first step of a system took.

    Raises:
        WorkerFailed: the target or the system raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(target, system, "cpu", 0, Path(folder))
        found = worker.ask("first")
        worker.close()
    return found


def row(model: str, rounds: Sequence[dict[str, dict[str, Any]]]) -> str:
    """One line of the table: plain torch.compile's seconds, then each system's ratios."""
    plain = [found[BASELINE] for found in rounds]
    cells = [f"{median(each[WALL] for each in plain):.1f} s", f"{median(each[PYTHON] for each in plain):.1f} s"]
    for system in rounds[0]:
        if system != BASELINE:
            cells += [f"{median(f[system][key] / f[BASELINE][key] for f in rounds):.2f}x" for key in (WALL, PYTHON)]
    return line(model, *cells)


def main(
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names")] = "fxapprox-8,fxapprox-4",
    rounds: Annotated[int, typer.Option(min=1, help="compilations of each")] = 1,
) -> None:
    """Prints the table, a line as soon as a model is done."""
    chosen = parse_systems(systems, [name for name, system in SYSTEMS.items() if system.compiled])
    measured = [BASELINE, *(name for name in chosen if name != BASELINE)]
    columns = [f"{SYSTEMS[name].label}, {what}" for name in measured for what in ("wall", "Python")]
    print(head("model", *columns))
    for model in select(MODELS, models):
        turns = [(turn, name) for turn in range(rounds) for name in measured]
        found: list[dict[str, dict[str, Any]]] = [{} for _ in range(rounds)]
        for turn, name in track(turns, model, transient=True):
            found[turn][name] = compiled(TARGET.format(model), name)
        print(row(model, found), flush=True)
