"""One setting of the budget benchmark in a process of its own, because Inductor's state and allocators must not mix.

python -m tools.budget_worker measure MODEL SYSTEM SETTING --out DIR    writes the record
python -m tools.budget_worker steps MODEL SYSTEM SETTING                answers every line with the seconds of a step
"""

from __future__ import annotations

import gc
import hashlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

import fxapprox
from fxapprox.measure.memory import peak_bytes, stored_bytes
from tools.budget_models import Step, build, runner
from tools.budget_records import Record, of, same_plan, save, saved
from tools.zoo.training import gradients, relative

app = typer.Typer(add_completion=False, no_args_is_help=True)
TIMED = 5  # steps, of which the fastest counts
Setting = Annotated[str, typer.Argument()]


@app.command()
def measure(model: str, system: str, setting: Setting = "", out: Annotated[Path, typer.Option()] = Path()) -> None:
    """Measures one setting and writes its record; a plan that was measured at another budget is not run again."""
    record = Record(model, system, setting)
    try:
        if system == "fxapprox":
            record = planned(record)
            known = same_plan(of(saved(out), model, system), record.plan_key)
            if known is not None:
                return save(replace(known, setting=setting, measured_at=known.setting), out)
        record = measured(record, lambda: build(model), lambda step: runner(model, system, setting, step))
    except Exception as error:  # whatever a compiler raises; a process that dies is recorded by its parent
        record = replace(record, failed=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    save(record, out)


def planned(record: Record) -> Record:
    """The record with what fxapprox says without running a step."""
    step = build(record.model)
    report = fxapprox.explain(step, *step.args, memory_budget=float(record.setting), strict=True)
    content = repr((report.plan, report.setting, report.saved_bytes, report.peak_bytes))
    return replace(
        record,
        predicted=report.peak_bytes,
        predicted_plain=report.baseline_peak_bytes,
        plan=report.setting,
        plan_key=hashlib.sha256(content.encode()).hexdigest()[:16],
    )


def measured(
    record: Record, make: Callable[[], Step], compiled: Callable[[Step], tuple[Any, AbstractContextManager]]
) -> Record:
    """The record with what one process measures.

    Args:
        record: what is known already.
        make: the same step every time.
        compiled: what runs it, and the context for that; may change the step.
    """
    exact = exact_gradients(make())
    step = make()
    run, context = compiled(step)
    with context:
        start = time.perf_counter()
        loss = run(*step.args)
        loss.backward()
        compile_seconds = time.perf_counter() - start
        error = relative(gradients(step), exact)
        first = float(loss.detach()).hex()
        stored = held(step, run)
        gc.collect()
        step.zero_grad(set_to_none=True)
        peak = peak_bytes(lambda: run(*step.args).backward()).peak
        seconds = min(timed(step, run) for _ in range(TIMED))
    return replace(
        record, stored=stored, peak=peak, gradient_error=error, loss=first, compile_seconds=compile_seconds,
        step_seconds=seconds,
    )  # fmt: skip


def exact_gradients(step: Step) -> Tensor:
    """All gradients of the eager model."""
    step(*step.args).backward()
    return gradients(step)


def held(step: Step, run: Any) -> int:
    """Bytes between forward and backward."""
    step.zero_grad(set_to_none=True)
    loss = run(*step.args)
    stored = stored_bytes(loss, exclude=step.alive_anyway())
    loss.backward()
    return stored


def timed(step: Step, run: Any) -> float:
    """Seconds of one training step, without an optimizer."""
    step.zero_grad(set_to_none=True)
    start = time.perf_counter()
    run(*step.args).backward()
    return time.perf_counter() - start


@app.command()
def steps(model: str, system: str, setting: Setting = "") -> None:
    """Compiles, says "ready", and runs one step for every line on standard input, until it ends."""
    step = build(model)
    run, context = runner(model, system, setting, step)
    with context:
        for _ in range(2):
            timed(step, run)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(timed(step, run), flush=True)


if __name__ == "__main__":
    app()
