"""Stored bytes, peak and gradient error of one training step, by setting; the peak as predicted and as allocated.

A setting is plain (torch.compile as it is), bits (8, 4, 2, exact), or bits and checkpoints (4+sqrt, 8+12). Each runs in
a process of its own and writes a JSON file; the same command continues where it was interrupted, and all files together
give table.md. Parameters and inputs are not counted, gradients are. Inductor takes half an hour to compile 1000 layers;
with --lowering eager the same graphs run operator by operator, plain is torch's own partition run that way, and
temporaries that Inductor would fuse count in the peak.

Examples:

    python -m tools.memory --out runs/memory --models gpt,unet,vit --settings plain,exact,8,4,2 --lowering inductor
    python -m tools.memory --out runs/deep --models 164 --settings plain,4,4+sqrt --lowering inductor
    python -m tools.memory --out runs/deep --models 1001 --settings plain,4,4+sqrt
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import fxapprox
from fxapprox.options import Options
from fxapprox.options.parse import parse_bits
from tools.budget.measure import measured
from tools.budget.models import Step
from tools.budget.records import Record, in_process, path_of, save, saved
from tools.harness import Lowering, head, line, select, write_text
from tools.zoo.models import Case, benchmarks, gpt, unet

MIB = 2**20
# by name: what builds it at a batch, the batch
MODELS: dict[str, tuple[Callable[[int], Case], int]] = {
    "resnet-20": (lambda batch: benchmarks.preact(20, batch), 32),
    "resnet-29": (lambda batch: benchmarks.preact(29, batch, bottleneck=True), 32),
    "resnet-164": (lambda batch: benchmarks.preact(164, batch, bottleneck=True), 32),
    "resnet-1001": (lambda batch: benchmarks.preact(1001, batch, bottleneck=True), 32),
    "gpt": (lambda batch: gpt(batch=batch, layers=4, width=128, vocab=256), 16),
    "unet": (lambda batch: unet(batch=batch, width=32), 8),
    "vit": (benchmarks.vit, 32),
}
HEAD = "model|lowering|stored as|stored, MiB|times less|real peak, MiB|times less|predicted, MiB|gradient error|step, s"


def make(model: str) -> Step:
    """The same weights, inputs and targets every time."""
    torch.manual_seed(0)
    build, batch = MODELS[model]
    return Step(build(batch))


def options_of(setting: str) -> dict[str, Any]:
    """The options of fxapprox for a setting: "4", "exact", "4+sqrt", "8+12".

    Raises:
        OptionError: it is not one.
    """
    bits, _, checkpoint = setting.partition("+")
    number = int(checkpoint) if checkpoint.isdecimal() else checkpoint or None
    options = {"bits": parse_bits(bits), "checkpoint": number}
    Options.parse(options)
    return options


def records(items: Iterable[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    """The record of each model, lowering and setting, measured in this process."""
    for model, lowering, setting in items:
        yield asdict(measure(model, lowering, setting))


def measure(model: str, lowering: str, setting: str) -> Record:
    """The record of one setting, measured in this process."""
    sys.setrecursionlimit(100_000)  # Dynamo recurses over nested modules and long chains
    record = Record(model, lowering, setting)
    if setting == "plain":
        backend = "inductor" if lowering == "inductor" else "aot_eager_decomp_partition"
        return measured(record, lambda: make(model), lambda step: (_plain(step, backend), contextlib.nullcontext()))
    runs: list[Any] = []

    def compiled(step: Step) -> tuple[Any, contextlib.AbstractContextManager]:
        runs.append(fxapprox.compile(step, lowering=lowering, dynamic=False, strict=True, **options_of(setting)))
        return runs[0], contextlib.nullcontext()

    record = measured(record, lambda: make(model), compiled)
    (report,) = fxapprox.reports(runs[0])
    return replace(record, predicted=report.peak_bytes, predicted_plain=report.baseline_peak_bytes)


def _plain(step: Step, backend: str) -> Callable[..., Any]:
    return torch.compile(step, backend=backend, dynamic=False)


def table(records: list[Record]) -> str:
    """A row for each setting, against plain in the same lowering."""
    lines = [head(*HEAD.split("|"), texts=3)]
    plain = {(r.model, r.system): r for r in records if r.setting == "plain" and not r.failed}
    for r in sorted(records, key=lambda r: (r.model, r.system, -r.peak)):
        base = plain.get((r.model, r.system))
        predicted = r.predicted if r.setting != "plain" else _plain_prediction(records, r)
        cells = [f"failed: {r.failed}", *[""] * 6] if r.failed else [
            f"{r.stored / MIB:.1f}",
            f"{base.stored / r.stored:.1f}" if base else "-",
            f"{r.peak / MIB:.1f}",
            f"{base.peak / r.peak:.1f}" if base else "-",
            f"{predicted / MIB:.1f}" if predicted is not None else "-",
            f"{r.gradient_error:.2%}",
            f"{r.step_seconds:.2f}",
        ]  # fmt: skip
        lines.append(line(f"{r.model}, batch {MODELS[r.model][1]}", r.system, r.setting, *cells))
    return "\n".join([*lines, ""])


def _plain_prediction(records: list[Record], plain: Record) -> int | None:
    """What fxapprox predicts for plain torch.compile."""
    return next((r.predicted_plain for r in records if r.model == plain.model and r.predicted_plain), None)


def main(
    out: Annotated[Path, typer.Option(help="directory of the results")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    settings: Annotated[str, typer.Option(help="comma-separated")] = "plain,4,4+sqrt",
    lowering: Annotated[Lowering, typer.Option(help="eager, or inductor")] = Lowering.eager,
    limit: Annotated[float, typer.Option(help="seconds for one measurement")] = 7200,
) -> None:
    """Measures what is missing, then writes the table."""
    chosen = [(model, setting.strip()) for model in select(MODELS, models) for setting in settings.split(",")]
    for _, setting in chosen:
        if setting != "plain":
            options_of(setting)
    (out / "records").mkdir(parents=True, exist_ok=True)
    for model, setting in chosen:
        record = Record(model, lowering.value, setting)
        if path_of(record, out).exists():
            continue
        Console().log(record.name)
        save(in_process("tools.memory:records", record, limit), out)
        write_text(out / "table.md", table(saved(out)))


if __name__ == "__main__":
    typer.run(main)
