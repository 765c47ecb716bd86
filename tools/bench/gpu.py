"""The GPU benchmark: large models in every system, at one batch, and the largest batch that fits in each.

Each model and precision gives MODEL-PRECISION.json (all systems at one batch, as ``fxapprox bench`` has them) and its
picture, and MODEL-PRECISION-largest.json; what has a file is not run again. All files together give bench_gpu.md. The
largest batch is sought with the peaks of two batches, drawn through to the memory there is, and tried: what does not
fit is tried again with less. A batch holds a step without an optimizer.

Examples:

    python -m tools.bench.gpu --out docs/results/bench_gpu
    python -m tools.bench.gpu --out runs/gpu --models resnet-50 --precision bf16 --systems compile,fxapprox-4
    python -m tools.bench.gpu --out runs/tiny --models tiny --device cpu --memory 64MiB --systems eager
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console

from fxapprox.amounts import parse_bytes
from fxapprox.bench import records, run, show
from fxapprox.bench.run import Worker, WorkerFailed
from fxapprox.bench.systems import SYSTEMS
from fxapprox.errors import FxApproxError
from fxapprox.options.parse import parse_systems
from tools.bench.gpu_models import MODELS, PRECISIONS
from tools.harness import head, select, write_text

SPARE = 0.03  # of the memory, which the allocator cannot use
LESS = 0.93  # of a batch that did not fit, tried next
TRIES = 4


class Trials:
    """Steps of one model in one system, each batch in a process of its own.

    Args:
        model, precision: of ``MODELS`` and ``PRECISIONS``.
        memory: bytes that parameters, gradients and a step may take.
    """

    def __init__(self, model: str, precision: str, system: str, device: str, memory: int) -> None:
        self._model, self._precision, self._system = model, precision, system
        self._device, self._memory = device, memory

    def needs(self, batch: int) -> int | None:
        """Bytes of parameters and a step; None if they do not fit.

        Raises:
            WorkerFailed: the step fails for another reason.
        """
        with TemporaryDirectory() as name:
            worker = None
            try:
                worker = Worker(write_target(Path(name), self._model, self._precision, batch), self._system,
                                self._device, 0, Path(name))  # fmt: skip
                worker.ask("first")
                needed = worker.ask("resident")["bytes"] + worker.ask("memory")["peak_bytes"]
            except WorkerFailed as error:
                if "memory" in str(error):
                    return None
                raise
            else:
                worker.close()
        return needed if needed <= self._memory else None


def write_target(folder: Path, model: str, precision: str, batch: int) -> str:
    """A file with a factory for this batch, as ``fxapprox bench`` takes it."""
    path = folder / f"batch_{batch}.py"
    path.write_text(
        "from tools.bench.gpu_models import target\n\n\n"
        f"def factory():\n    return target({model!r}, {precision!r}, {batch})\n",
        encoding="utf-8",
    )
    return f"{path}:factory"


def largest(trials: Trials, memory: int, first: int) -> tuple[int, int]:
    """(the largest batch that was found to fit, bytes that it needs); (0, 0) if none did.

    Args:
        memory: bytes.
        first: the batch to begin with.
    """
    low = trials.needs(first)
    while low is None:
        first //= 2
        if not first:
            return 0, 0
        low = trials.needs(first)
    found, needed = first, low
    if (high := trials.needs(2 * first)) is None:
        batch = int(2 * first * LESS)
    else:
        found, needed = 2 * first, high
        batch = first + int(first * (memory * (1 - SPARE) - low) / max(1, high - low))
    for _ in range(TRIES):
        if batch <= found:
            break
        if (tried := trials.needs(batch)) is not None:
            return batch, tried
        batch = int(batch * LESS)
    return found, needed


def compare(model: str, precision: str, systems: Sequence[str], device: str, rounds: int, out: Path) -> None:
    """All systems at one batch: JSON and a picture."""
    with TemporaryDirectory() as name:
        target = write_target(Path(name), model, precision, MODELS[model][1])
        found = run.bench(target, systems, rounds=rounds, device=device)
    write_text(out / f"{model}-{precision}.json", found.to_json() + "\n")
    show.plot(found, out / f"{model}-{precision}.png")


def seek(model: str, precision: str, systems: Sequence[str], device: str, memory: int, out: Path) -> None:
    """The largest batch of every system: JSON, written as it is found."""
    path = out / f"{model}-{precision}-largest.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for system in systems:
        if system in found:
            continue
        try:
            batch, needed = largest(Trials(model, precision, system, device, memory), memory, MODELS[model][1])
            found[system] = {"batch": batch, "bytes": needed, "memory": memory, "failed": ""}
        except WorkerFailed as error:
            found[system] = {"batch": 0, "bytes": 0, "memory": memory, "failed": str(error)}
        write_text(path, json.dumps(found, indent=1) + "\n")


def markdown(out: Path) -> str:
    """All results in the directory."""
    parts = ["# GPU benchmark\n"]
    for name in (f"{model}-{precision}" for model in MODELS for precision in PRECISIONS):
        if (path := out / f"{name}.json").exists():
            parts.append(show.markdown(records.read(path)).replace("## ", f"## {name}: ", 1))
        if (path := out / f"{name}-largest.json").exists():
            parts.append(_largest_table(json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _largest_table(found: Mapping[str, Mapping[str, object]]) -> str:
    lines = [head("system", "largest batch", "GiB")]
    for system, each in found.items():
        size = f"{float(str(each['bytes'])) / 2**30:.1f}"
        lines.append(f"| {SYSTEMS[system].label} | {each['failed'] or each['batch']} | {size} |")
    return "\n".join([*lines, ""])


def main(
    out: Annotated[Path, typer.Option(help="directory of the results")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all but tiny if empty")] = "",
    precision: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(PRECISIONS)}")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="timed steps of each system")] = 15,
    device: Annotated[str, typer.Option(help="a CUDA device, or cpu to try the benchmark itself")] = "cuda",
    memory: Annotated[str, typer.Option(help='for the largest batch: "16GiB"; all of the GPU if empty')] = "",
) -> None:
    """Measures what is missing, then writes the tables."""
    console, chosen = Console(stderr=True), parse_systems(systems, tuple(SYSTEMS))
    limit = _limit(device, memory)
    out.mkdir(parents=True, exist_ok=True)
    for model in select(MODELS, models) if models else [name for name in MODELS if name != "tiny"]:
        for each in select(PRECISIONS, precision):
            console.print(f"{model}, {each}")
            try:
                if not (out / f"{model}-{each}.json").exists():
                    compare(model, each, chosen, device, rounds, out)
                seek(model, each, chosen, device, limit, out)
            except FxApproxError as error:
                console.print(f"{model}, {each}: {error}", markup=False)
    write_text(out / "bench_gpu.md", markdown(out))


def _limit(device: str, memory: str) -> int:
    """Bytes of memory.

    Raises:
        typer.BadParameter: there is no such device, or no number.
    """
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise typer.BadParameter(f"--device {device}: this torch sees no GPU; try the benchmark with --device cpu")
        return parse_bytes(memory) if memory else torch.cuda.get_device_properties(device).total_memory
    if not memory:
        raise typer.BadParameter('--memory: the largest batch wants a limit on this device, such as "64MiB"')
    return parse_bytes(memory)


if __name__ == "__main__":
    typer.run(main)
