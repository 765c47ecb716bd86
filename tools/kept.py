"""What stays in a process of models that were made, compiled, trained and deleted, beside plain torch.compile.

Each mode runs in a process of its own, with Python's objects from the C library's allocator, so that all bytes count.
"equal" models are of one size, of the others each has another width: Dynamo compiles plain ones up to its limit.

Examples:

    python -m tools.kept
    python -m tools.kept --models 20 --kinds transformer --lowering inductor
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxapprox
from fxapprox import torch_adapter as adapter
from tools.harness import Failed, Lowering, outcome
from tools.soak import Block, bytes_in_use

MODES = ("plain", "exact", "4 bits")
HEAD = ("models", "mode", "graphs compiled", "objects a model", "graph modules", "KiB a model", "of it left by reset")


class Blocks(nn.Module):
    """Six layers of a transformer, (N, T, C) to a number."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(0.0) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).square().mean()


class Small(nn.Module):
    """Two layers, (N, width) to a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))).square().mean()


KINDS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "small, equal": lambda _: (Small(64), torch.randn(64, 64)),
    "small": lambda i: (Small(64 + i), torch.randn(64, 64 + i)),
    "transformer, equal": lambda _: (Blocks(6), torch.randn(2, 64, 128)),
    "transformer": lambda i: (Blocks(6), torch.randn(2, 64 + i, 128)),
}


def train(kind: str, mode: str, number: int, lowering: str) -> None:
    """Makes a model, trains it for a step, and forgets it."""
    model, x = KINDS[kind](number)
    if mode == "plain":
        plain = "aot_eager_decomp_partition" if lowering == "eager" else "inductor"
        compiled = torch.compile(model, backend=plain, dynamic=False)
    else:
        compiled = fxapprox.compile(model, bits=4 if mode == "4 bits" else None, lowering=lowering, dynamic=False)
    compiled(x).backward()


def measure(kind: str, mode: str, models: int, lowering: str) -> dict[str, float]:
    """Counts in this process; the first model, of another size, fills what any process keeps."""
    train(kind, mode, 999, lowering)
    torch.compiler.reset()
    before, compiled = _counts(), adapter.graphs_compiled()
    for number in range(models):
        train(kind, mode, number, lowering)
    after, compiled = _counts(), adapter.graphs_compiled() - compiled
    torch.compiler.reset()
    objects, modules, size = (b - a for a, b in zip(before, after, strict=True))
    left = _counts()[2] - before[2]
    return {"graphs": compiled, "objects": objects / models, "modules": modules, "size": size / models,
            "left": left / models}  # fmt: skip


def records(items: Iterable[tuple[str, str]], *, models: int, lowering: str) -> Iterator[dict[str, float]]:
    """The counts of each kind and mode, in this process."""
    for kind, mode in items:
        yield measure(kind, mode, models, lowering)


def _counts() -> tuple[int, int, int]:
    """(Python objects, graph modules, bytes in use)."""
    size = bytes_in_use()  # collects garbage
    found = gc.get_objects()
    return len(found), sum(issubclass(type(each), torch.fx.GraphModule) for each in found), size


def main(
    models: Annotated[int, typer.Option(help="How many.")] = 100,
    kinds: Annotated[str, typer.Option(help="Those whose names begin so.")] = "small",
    lowering: Annotated[Lowering, typer.Option(help="eager or inductor.")] = Lowering.eager,
) -> None:
    """Prints the table."""
    table = Table(*HEAD)
    for kind in (kind for kind in KINDS if kind.startswith(kinds)):
        for mode in MODES:
            found = outcome("tools.kept:records", (kind, mode), environment={"PYTHONMALLOC": "malloc"},
                            models=models, lowering=lowering.value)  # fmt: skip
            if isinstance(found, Failed):
                raise SystemExit(found.said)
            table.add_row(
                kind, mode, f"{found['graphs']}", f"{found['objects']:,.0f}", f"{found['modules']}",
                f"{found['size'] / 1024:,.0f}", f"{found['left'] / 1024:,.0f}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
