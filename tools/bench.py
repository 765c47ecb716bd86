"""The CPU benchmark: the main models in every system; see ``fxapprox bench --help`` for one model of your own.

Each model gives MODEL.json and MODEL.png in --out; models that have a file are not run again. All files together give
bench_cpu.md: what was asked of fxapprox and what was reached, then a table for each model.

Examples:

    python -m tools.bench --out docs/results/bench_cpu
    python -m tools.bench --out runs/bench --models resnet,unet --systems compile,fxapprox-8,fxapprox-4
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fxapprox.bench import records, run, show
from fxapprox.bench.records import Bench, Record, middle
from fxapprox.bench.systems import SYSTEMS
from fxapprox.cli import parse_systems
from fxapprox.errors import FxApproxError
from tools.bench_models import MODELS
from tools.runs import write_text
from tools.selection import select

OURS = "fxapprox"
HEAD = (
    "model|8 bits, step|4 bits, step|4 bits, compile|4 bits, peak|8 bits, error|fp8, error|below and left of our curve"
)


def rivals_ahead(bench: Bench) -> list[Record]:
    """Systems of others that none of ours equals in both peak and step time: our curve is not below them."""
    own = [r for r in bench.records if SYSTEMS[r.system].family == OURS and not r.failed]
    others = [r for r in bench.records if SYSTEMS[r.system].family != OURS and not r.failed]
    return [rival for rival in others if not any(_no_worse(bench, r, rival) for r in own)]


def _no_worse(bench: Bench, own: Record, rival: Record) -> bool:
    """Whether ours takes no more memory and no more time than a rival."""
    return own.peak_bytes <= rival.peak_bytes and _step(bench, own) <= _step(bench, rival)


def _step(bench: Bench, record: Record | None) -> float:
    return middle(bench.step_ratios(record)) if record is not None else math.nan


def overview(benches: Mapping[str, Bench]) -> str:
    """One row for each model: what the project promises, and how it stands."""
    lines = [_line(HEAD.split("|")), "|---" + "|---:" * (HEAD.count("|") - 1) + "|---|"]
    for model, bench in benches.items():
        by_name = {r.system: r for r in bench.records if not r.failed}
        base, eight, four, fp8 = (by_name.get(n) for n in ("compile", "fxapprox-8", "fxapprox-4", "fp8"))
        ahead = ", ".join(SYSTEMS[r.system].label for r in rivals_ahead(bench)) or "none"
        lines.append(_line([
            model, f"{_step(bench, eight):.2f}x", f"{_step(bench, four):.2f}x",
            f"{four.compile_seconds / base.compile_seconds:.2f}x" if four and base else "-",
            f"{four.peak_bytes / base.peak_bytes:.2f}" if four and base else "-", _error(eight), _error(fp8), ahead,
        ]))  # fmt: skip
    return "\n".join([*lines, "", *(_summary(benches, system) for system in ("fxapprox-8", "fxapprox-4")), ""])


def _summary(benches: Mapping[str, Bench], system: str) -> str:
    """The median and the slowest of a system's step times over all models."""
    found = [_step(b, r) for b in benches.values() for r in b.records if r.system == system and b.step_ratios(r)]
    slowest = max(found, default=math.nan)
    return f"{SYSTEMS[system].label}: a step takes {middle(found):.2f}x (median over models), {slowest:.2f}x at most."


def _error(record: Record | None) -> str:
    return "-" if record is None or record.gradient_error is None else f"{record.gradient_error:.2%}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_results(out: Path) -> None:
    """bench_cpu.md, from all files in the directory."""
    benches = {model: records.read(out / f"{model}.json") for model in MODELS if (out / f"{model}.json").exists()}
    text = "\n".join([overview(benches), *(show.markdown(bench) for bench in benches.values())])
    write_text(out / "bench_cpu.md", text)


def main(
    out: Annotated[Path, typer.Option(help="directory of the results")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="timed steps of each system")] = 15,
) -> None:
    """Measures what is missing, then writes the tables."""
    out.mkdir(parents=True, exist_ok=True)
    console, chosen = Console(stderr=True), parse_systems(systems, tuple(SYSTEMS))
    for model in select(MODELS, models):
        if (out / f"{model}.json").exists():
            continue
        try:
            found = run.bench(f"tools.bench_models:{model}", chosen, rounds=rounds, console=console)
        except FxApproxError as error:
            console.print(f"{model}: {error}", markup=False)
            continue
        write_text(out / f"{model}.json", found.to_json() + "\n")
        show.plot(found, out / f"{model}.png")
    write_results(out)


if __name__ == "__main__":
    typer.run(main)
