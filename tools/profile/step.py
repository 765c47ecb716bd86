"""Where a training step spends its time on the CPU: a Markdown table of milliseconds, by what runs.

Libraries' convolutions, products and attention; the kernels that Inductor writes, forward's and backward's; a channel's
arithmetic (``torch_adapter.small``); everything else, which is allocation, autograd and the profiler itself. Every
system runs in a process of its own. Kernels are told apart by the graph that calls them.

--without takes back what was changed for a step's sake, to see what it gave: "loads" (eight bytes of a code by one
instruction), "width" (eight elements at a time), "functions" (a channel's arithmetic is compiled), "bytes" (codes of
images are packed from bytes), "layout" (images, and groups' codes of them, are channels-last in backward, too), "ahead"
(the gradients of a product over a vocabulary are forward's), "slices" (wide parts run slice by slice). --tried does
what was not kept: "reuse" (Inductor holds a dead buffer for the next one of its size), "rows" (codes of images share
bytes within rows), "levels" (a group's levels are equidistant).

Examples:

    python -m tools.profile step --models resnet_29 --systems compile,fxapprox-8,fxapprox-4
    python -m tools.profile step --models resnet_29 --systems fxapprox-8 --without loads,width
    python -m tools.profile step --models resnet_29 --systems fxapprox-4 --tried reuse
    python -m tools.profile step --models bert --systems fxapprox-4 --kernels 20
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any
from unittest import mock

import typer
from rich.progress import track
from torch.profiler import ProfilerActivity, profile

from fxapprox import torch_adapter as adapter
from fxapprox.bench.systems import BASELINE, SYSTEMS
from fxapprox.bench.worker import Trial
from fxapprox.codecs import group, packing
from fxapprox.codecs.packing import split_dim
from fxapprox.options.parse import parse_systems
from fxapprox.passes import pipeline
from fxapprox.torch_adapter import inductor
from fxapprox.torch_adapter.speedups import byte_loads, float_loops
from tools.bench.models import MODELS
from tools.harness import Failed, head, line, outcome, select

LIBRARIES = ("convolution", "addmm", "::mm", "::bmm", "baddbmm", "attention", "mkldnn", "linear")
KINDS = ("libraries", "kernels, forward", "kernels, backward", "channels", "rest")
WARM_UP = 3  # steps before those that count


def _as_it_is(value: Any) -> Any:
    return value


def _within_rows(shape: Sequence[int], rows: int, *, within: bool = False) -> int | None:
    return split_dim(shape, rows, within=True)


Change = tuple[ModuleType, str, Any]  # a module, a name in it, and what takes its place
KEPT: dict[str, Change | str] = {  # or the pass that is left out
    "loads": (byte_loads, "_codes_at_once", _as_it_is),
    "width": (float_loops, "_not_for_radii", _as_it_is),
    "functions": "call arithmetic",
    "bytes": (packing, "code_in_memory", _as_it_is),
    "layout": "find images",
    "ahead": "advance",
    "slices": "slice",
}
TRIED: dict[str, Change | str] = {
    "reuse": (inductor, "SETTINGS", {}),
    "rows": (packing, "split_dim", _within_rows),
    "levels": (group, "CURVE", {bits: (0.0, margin) for bits, (_, margin) in group.CURVE.items()}),
}


def kind_of(operator: str, in_backward: bool) -> str:
    """The row of an operator's own time."""
    if "cpp_fused" in operator:
        return f"kernels, {'backward' if in_backward else 'forward'}"
    if operator.startswith("fxapprox::"):
        return "channels"
    return "libraries" if any(part in operator for part in LIBRARIES) else "rest"


def profiled(model: str, system: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, by kind and by kernel, in this process."""
    trial = Trial(f"tools.bench.models:{model}", system, "cpu", 0)
    with trial, adapter.kernels_in_profiles():
        for _ in range(WARM_UP):
            trial.step()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(steps):
                trial.step()
    events = recorded.events() or ()
    kinds, kernels = Counter[str](), Counter[str]()
    for event in events:
        spent = event.self_cpu_time_total / 1000 / steps
        kind = kind_of(event.name, _in_backward(event))
        kinds[kind] += spent
        if kind.startswith("kernels"):
            kernels[event.name] += spent
    return {"kinds": kinds, "kernels": kernels.most_common()}


def _in_backward(event: Any) -> bool:
    """Whether autograd called what called the operator."""
    while event is not None:
        if "Backward" in event.name:
            return True
        event = event.cpu_parent
    return False


def row(model: str, label: str, kinds: Mapping[str, float]) -> str:
    """One line of the table."""
    times = [kinds.get(kind, 0.0) for kind in KINDS]
    return line(model, label, *(f"{time:.0f}" for time in (sum(times), *times)))


def records(items: Iterable[tuple[str, str]], *, steps: int, changes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What ``profiled`` gives of each model and system, with these changes."""
    with contextlib.ExitStack() as stack:
        for name in changes:
            change = (KEPT | TRIED)[name]
            left_out = isinstance(change, str)
            stack.enter_context(pipeline.leaving_out(change) if left_out else mock.patch.object(*change))
        for model, system in items:
            yield profiled(model, system, steps)


def in_process(model: str, system: str, steps: int, changes: Sequence[str]) -> dict[str, Any]:
    """What ``profiled`` gives, from a process of its own that has no cache."""
    with tempfile.TemporaryDirectory() as folder:
        found = outcome(
            "tools.profile.step:records", (model, system), environment={"TORCHINDUCTOR_CACHE_DIR": folder},
            steps=steps, changes=changes,
        )  # fmt: skip
    if isinstance(found, Failed):
        print(found.said, file=sys.stderr)
        raise typer.Exit(code=1)
    return found


def _named(text: str, changes: Mapping[str, Change | str], option: str) -> list[str]:
    """The names in a comma-separated text."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := set(names) - changes.keys():
        raise typer.BadParameter(f"{option}: no {', '.join(sorted(unknown))}; there are: {', '.join(changes)}")
    return names


def longest(kernels: Iterable[tuple[str, float]], count: int) -> list[str]:
    """The kernels that take most time, a line each."""
    return [f"  {spent:7.2f} ms  {name[:110]}" for name, spent in list(kernels)[:count]]


def main(
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names")] = "compile,fxapprox-8,fxapprox-4",
    steps: Annotated[int, typer.Option(min=1, help="profiled steps")] = 6,
    without: Annotated[str, typer.Option(help=f"comma-separated, of: {', '.join(KEPT)}")] = "",
    tried: Annotated[str, typer.Option(help=f"comma-separated, of: {', '.join(TRIED)}")] = "",
    kernels: Annotated[int, typer.Option(min=0, help="kernels to list below the table")] = 0,
) -> None:
    """Prints the table, a line as soon as a system is done."""
    chosen = parse_systems(systems, [name for name, system in SYSTEMS.items() if system.compiled])
    taken_back, added = _named(without, KEPT, "--without"), _named(tried, TRIED, "--tried")
    print(head("model", "system", "ms", *KINDS, texts=2))
    listed = []
    for model in select(MODELS, models):
        for system in track(chosen, model, transient=True):
            found = in_process(model, system, steps, taken_back + added)
            changes = [f"without {name}" for name in taken_back] + [f"with {name}" for name in added]
            label = ", ".join([SYSTEMS[system].label, *(changes if system != BASELINE else [])])
            print(row(model, label, found["kinds"]), flush=True)
            listed += [f"{model}, {label}:", *longest(found["kernels"], kernels)] if kernels else []
    print("\n".join(listed))
