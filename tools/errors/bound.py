"""Whether ``error=`` keeps what it promises, over the zoo: errors, bytes beside 8 and 4 bits, the first step's time.

The reference is exact mode, run with the same random numbers; errors are those of the whole gradient and of the worst
parameter that counts (``fxapprox.planning.bound.counted``), in the second step, on the batch that was measured. A row
is kept if the first is at most the bound and the second at most three times that. Everything is run eagerly.

Examples:

    python -m tools.errors bound
    python -m tools.errors bound --models gpt2,unet --bounds 0.02 --out bound.jsonl
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor

import fxapprox
from fxapprox.frontend.bound_measured import SINGLE
from fxapprox.planning.bound import counted
from tools.harness import head, line, select
from tools.zoo.models import Case
from tools.zoo.models.zoo import ZOO
from tools.zoo.training import forward


def gradients(case: Case, run: Callable[..., Any]) -> list[Tensor]:
    """Of all parameters, zeros where there is none; the same random numbers each time."""
    case.model.zero_grad(set_to_none=True)
    forward(case, run).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in case.model.parameters()]


def errors(found: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Relative, of all together and of the worst that counts."""
    norms = [float(g.double().norm()) for g in exact]
    off = [float((a.double() - b.double()).norm()) for a, b in zip(found, exact, strict=True)]
    return math.hypot(*off) / math.hypot(*norms), max(off[i] / norms[i] for i in counted(norms))


def stored(run: object) -> int:
    return sum(report.saved_bytes for report in fxapprox.reports(run))


def measured(case: Case, options: dict[str, Any], steps: int) -> tuple[list[Tensor], int, float]:
    """Gradients of the last of some steps, bytes stored, and the seconds of the first step."""
    torch.compiler.reset()
    run = fxapprox.compile(case.model, lowering="eager", **options)
    began = time.perf_counter()
    found = gradients(case, run)
    first = time.perf_counter() - began
    for _ in range(steps - 1):
        found = gradients(case, run)
    return found, stored(run), first


def rows(name: str, bounds: list[float]) -> list[dict[str, Any]]:
    """One for each bound."""
    case = ZOO[name]()
    exact, least, seconds = measured(case, {"bits": None}, 1)
    _, eight, _ = measured(case, {"bits": 8}, 1)
    _, four, _ = measured(case, {"bits": 4}, 1)
    made = []
    for bound in bounds:
        found, took, first = measured(case, {"error": bound}, 2)
        whole, worst = errors(found, exact)
        made.append({
            "model": name, "bound": bound, "whole": whole, "worst": worst, "bytes": took, "exact": least, "8": eight,
            "4": four, "kept": whole <= bound and worst <= SINGLE * bound, "first": first / seconds,
        })  # fmt: skip
    return made


def main(
    only: Annotated[str, typer.Option("--models", help="comma-separated parts of names")] = "",
    bounds: Annotated[str, typer.Option(help="comma-separated")] = "0.05,0.02,0.005",
    out: Annotated[Path | None, typer.Option(help="a line of JSON for each row; those that are there are kept")] = None,
) -> None:
    """Prints how many rows keep each bound, what they store, and the rows that do not."""
    found: list[dict[str, Any]] = []
    if out is not None and out.exists():
        found = [json.loads(text) for text in out.read_text().splitlines()]
    asked, there = [float(bound) for bound in bounds.split(",")], {row["model"] for row in found}
    failed: list[str] = []
    for name in track([name for name in select(ZOO, only) if name not in there], description="models"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new = rows(name, asked)
        except Exception as error:  # a model that needs a package, or cannot be run: the others go on
            failed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}")
            continue
        found += new
        if out is not None:
            with out.open("a") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in new)
    print(head("bound", "kept", "median error", "bytes of exact's", "of 8 bits'", "of 4 bits'", "first step", texts=1))
    for bound in asked:
        own = [row for row in found if row["bound"] == bound]
        ratio = [f"{_median(row['bytes'] / max(row[key], 1) for row in own):.2f}" for key in ("exact", "8", "4")]
        first = f"{_median(row['first'] for row in own):.1f}x"
        kept = f"{sum(row['kept'] for row in own)} of {len(own)}"
        print(line(f"{bound:g}", kept, f"{_median(row['whole'] for row in own):.2%}", *ratio, first))
    for row in found:
        if not row["kept"]:
            print(f"not kept: {row['model']} at {row['bound']:g}: {row['whole']:.2%}, worst {row['worst']:.2%}")
    for text in failed:
        print(f"not run: {text}")


def _median(values: Any) -> float:
    given = sorted(values)
    return given[len(given) // 2] if given else math.nan
