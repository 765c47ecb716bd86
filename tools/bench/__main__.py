"""The CPU benchmark: the main models in every system; see ``fxapprox bench --help`` for one model of your own.

Each model gives MODEL.json and MODEL.png in --out; models that have a file are not run again. All files together give
a document beside that directory, --out with ".md" behind it: what was asked of fxapprox and what was reached, then a
table and a picture for each model.

Examples:

    python -m tools.bench --out docs/results/bench_cpu
    python -m tools.bench --out runs/bench --models resnet,unet --systems compile,fxapprox-8,fxapprox-4
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fxapprox.bench import records, run, show
from fxapprox.bench.records import Bench, Record, middle
from fxapprox.bench.systems import SYSTEMS
from fxapprox.errors import FxApproxError
from fxapprox.options.parse import parse_systems
from tools.bench.models import MODELS
from tools.harness import head, line, select, write_text

OURS = "fxapprox"
INTRODUCTION = """# CPU benchmark

`{command}`

Everything to plain `torch.compile`, which takes 1.00x; errors are gradients' against float64. A system of others is
named in the last column where none of ours takes no more time and no more memory: our curve does not pass below and
left of it. "Faster": than each of ours, which all take less memory.
"""
HEAD = (
    "model|8 bits, step|4 bits, step|8 bits, compile|4 bits, compile|8 bits, peak|4 bits, peak|8 bits, error|fp8, error"
    "|not matched by ours"
)


def rivals_ahead(bench: Bench) -> list[Record]:
    """Systems of others that none of ours equals in both peak and step time: our curve is not below them."""
    own, others = _families(bench)
    return [rival for rival in others if not any(_no_worse(bench, r, rival) for r in own)]


def _families(bench: Bench) -> tuple[list[Record], list[Record]]:
    """(our systems, those of others) that could be measured."""
    done = [r for r in bench.records if not r.failed]
    own = [r for r in done if SYSTEMS[r.system].family == OURS]
    return own, [r for r in done if r not in own]


def _named(bench: Bench, rival: Record) -> str:
    """A rival's label, and whether it is only faster than all of ours."""
    own, _ = _families(bench)
    faster = all(_step(bench, rival) < _step(bench, r) and rival.peak_bytes > r.peak_bytes for r in own)
    return SYSTEMS[rival.system].label + (" (faster)" if faster else "")


def _no_worse(bench: Bench, own: Record, rival: Record) -> bool:
    """Whether ours takes no more memory and no more time than a rival."""
    return own.peak_bytes <= rival.peak_bytes and _step(bench, own) <= _step(bench, rival)


def _step(bench: Bench, record: Record | None) -> float:
    return middle(bench.step_ratios(record)) if record is not None else math.nan


def overview(benches: Mapping[str, Bench]) -> str:
    """One row for each model: what the project promises, and how it stands."""
    lines = [head(*HEAD.split("|"), notes=1)]
    for model, bench in benches.items():
        by_name = {r.system: r for r in bench.records if not r.failed}
        base, eight, four, fp8 = (by_name.get(n) for n in ("compile", "fxapprox-8", "fxapprox-4", "fp8"))
        ahead = "; ".join(_named(bench, r) for r in rivals_ahead(bench)) or "none"
        lines.append(line(
            model, *(f"{_step(bench, own):.2f}x" for own in (eight, four)),
            *(f"{_compile(bench, own):.2f}x" for own in (eight, four)), *(_peak(own, base) for own in (eight, four)),
            *("-" if own is None else show.error_text(own) for own in (eight, fp8)), ahead,
        ))  # fmt: skip
    return "\n".join([*lines, "", *(_summary(benches, system) for system in ("fxapprox-8", "fxapprox-4")), ""])


def _summary(benches: Mapping[str, Bench], system: str) -> str:
    """The median and the slowest of a system's step times over all models, and the slowest compilation."""
    found = [(b, r) for b in benches.values() for r in b.records if r.system == system and b.step_ratios(r)]
    steps = [_step(b, r) for b, r in found]
    slowest, compiling = (max(column, default=math.nan) for column in (steps, [_compile(b, r) for b, r in found]))
    return (
        f"- {SYSTEMS[system].label}: a step takes {middle(steps):.2f}x (median over models), {slowest:.2f}x at most;"
        f" compiling takes {compiling:.2f}x at most."
    )


def _compile(bench: Bench, record: Record | None) -> float:
    return record.compile_seconds / bench.baseline.compile_seconds if record and bench.baseline else math.nan


def _peak(record: Record | None, base: Record | None) -> str:
    return f"{record.peak_bytes / base.peak_bytes:.2f}" if record and base else "-"


def _command(out: Path, benches: Iterable[Bench]) -> str:
    """What measures it all."""
    measured = dict.fromkeys(record.system for bench in benches for record in bench.records)
    chosen = f" --systems {','.join(measured)}" if measured and measured.keys() != SYSTEMS.keys() else ""
    return f"python -m tools.bench --out {out.as_posix()}{chosen}"


def write_results(out: Path) -> None:
    """The document, from all files in the directory."""
    benches = {model: records.read(out / f"{model}.json") for model in MODELS if (out / f"{model}.json").exists()}
    sections = [
        show.markdown(b) + f"\n![time and peak of {model}]({out.name}/{model}.png)\n" for model, b in benches.items()
    ]
    introduction = INTRODUCTION.format(command=_command(out, benches.values()))
    write_text(out.with_name(f"{out.name}.md"), "\n".join([introduction, overview(benches), *sections]))


def main(
    out: Annotated[Path, typer.Option(help="directory of the results")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="timed steps of each system")] = 9,
) -> None:
    """Measures what is missing, then writes the tables."""
    out.mkdir(parents=True, exist_ok=True)
    console, chosen = Console(stderr=True), parse_systems(systems, tuple(SYSTEMS))
    for model in select(MODELS, models):
        if (out / f"{model}.json").exists():
            continue
        try:
            found = run.bench(f"tools.bench.models:{model}", chosen, rounds=rounds, console=console)
        except FxApproxError as error:
            console.print(f"{model}: {error}", markup=False)
            continue
        write_text(out / f"{model}.json", found.to_json() + "\n")
        show.plot(found, out / f"{model}.png")
    write_results(out)


if __name__ == "__main__":
    typer.run(main)
