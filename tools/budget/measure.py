"""One setting of the budget benchmark, measured in this process: Inductor's state and allocators must not mix."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

import fxapprox
from fxapprox.measure.memory import peak_bytes, stored_bytes
from tools.budget.models import Step, build, runner
from tools.budget.records import Record, of, same_plan, saved
from tools.zoo.training import gradients, relative

R = TypeVar("R", bound=Record)
TIMED = 5  # steps, of which the fastest counts


def records(items: Iterable[tuple[str, str, str]], *, out: str) -> Iterator[dict[str, Any]]:
    """The record of each model, system and setting, measured in this process."""
    for model, system, setting in items:
        yield asdict(record_of(Record(model, system, setting), Path(out)))


def record_of(record: Record, out: Path) -> Record:
    """Measures one setting; a plan that was measured at another budget is not run again."""
    model, system, setting = record.model, record.system, record.setting
    try:
        if system == "fxapprox":
            record = planned(record)
            known = same_plan(of(saved(out), model, system), record.plan_key)
            if known is not None:
                return replace(known, setting=setting, measured_at=known.setting)
        return measured(record, lambda: build(model), lambda step: runner(model, system, setting, step))
    except Exception as error:  # whatever a compiler raises; a process that dies is recorded by its parent
        return replace(record, failed=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


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
        record = first_steps(record, step, run, exact)
        return replace(record, step_seconds=min(timed(step, run) for _ in range(TIMED)))


def first_steps(record: R, step: Step, run: Callable[..., Tensor], exact: Tensor) -> R:
    """The record with what three steps show, the first of which may compile; their gradients are gone."""
    start = time.perf_counter()
    loss = run(*step.args)
    loss.backward()
    compile_seconds = time.perf_counter() - start
    error = relative(gradients(step).float(), exact.float())
    first = float(loss.detach()).hex()
    del loss
    stored = held(step, run)
    step.zero_grad(set_to_none=True)
    gc.collect()
    peak = peak_bytes(lambda: run(*step.args).backward())
    step.zero_grad(set_to_none=True)
    return replace(
        record, stored=stored, peak=peak.peak, kept=peak.kept, gradient_error=error, loss=first,
        compile_seconds=compile_seconds,
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


def steps(turns: Iterable[Any], *, model: str, system: str, setting: str) -> Iterator[str | float]:
    """Compiles, says "ready", and gives the seconds of a step for every turn."""
    step = build(model)
    run, context = runner(model, system, setting, step)
    with context:
        for _ in range(2):
            timed(step, run)
        yield "ready"
        for _ in turns:
            yield timed(step, run)
