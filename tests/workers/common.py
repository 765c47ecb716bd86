"""What the processes of a test share: a group to talk in, one model, and comparisons between processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fxapprox

ROUNDING = 1e-5  # of float32 sums in another order
ALL = "--all" in sys.argv  # what is tried: everything, or some of it, for a quick run


Case = TypeVar("Case")


class Block(nn.Module):
    """Rows to rows, with a decision and a smooth function."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)
        self.gate = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(nn.functional.gelu(self.up(h)) * nn.functional.relu(self.gate(h)))


class Blocks(nn.Sequential):
    """One block after the other. Dynamo compiles this forward as a whole, and would not compile torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


def blocks(count: int, width: int = 32, inner: int = 128) -> Blocks:
    """The same weights in every process."""
    torch.manual_seed(0)
    return Blocks(*(Block(width, inner) for _ in range(count)))


def rows(count: int, width: int = 32, seed: int = 0) -> Tensor:
    """The same rows in every process that gives the same seed."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def some(*cases: Case, first: int = 1) -> tuple[Case, ...]:
    """The first cases, or all of them."""
    return cases if ALL else cases[:first]


def mine(x: Tensor) -> Tensor:
    """This process's part of a batch."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def gradient(model: nn.Module, run: Callable[[Tensor], Tensor], *batches: Tensor) -> Tensor:
    """All gradients in one vector, summed over batches."""
    model.zero_grad()
    for x in batches:
        run(x).square().mean().backward()
    return gradients(model)


def gradients(model: nn.Module) -> Tensor:
    """All gradients in one vector, whole if they are in shards."""
    found = [getattr(p.grad, "full_tensor", lambda g=p.grad: g)() for p in model.parameters()]
    return torch.cat([g.flatten() for g in found])


def averaged(vector: Tensor) -> Tensor:
    """The mean over processes."""
    total = vector.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def assert_close(found: Tensor, wanted: Tensor, bound: float) -> None:
    error = float((found - wanted).norm() / wanted.norm())
    assert error <= bound, f"off by {error:.2e}, expected at most {bound:.0e}"


def assert_same_plans(reports: Sequence[fxapprox.Report]) -> None:
    """Fails unless all processes store the same values in the same codecs, in the same graphs."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, [_plan_of(report) for report in reports])
    assert found[0], "nothing was compiled"
    for rank, other in enumerate(found):
        assert other == found[0], f"rank {rank} has another plan than rank 0"


def _plan_of(report: fxapprox.Report) -> tuple[str, ...]:
    document = {key: value for key, value in json.loads(report.to_json()).items() if key != "seconds"}
    graphs = (report.forward, report.backward)  # gone with the model that they were compiled for, if others share them
    return json.dumps(document), *("" if graph is None else str(graph.graph) for graph in graphs)


@contextmanager
def group() -> Iterator[None]:
    """The processes' group; one that waits for the others for a minute gives up."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        yield
    finally:
        dist.destroy_process_group()


def run(*checks: Callable[[], None]) -> None:
    """Runs the checks one after the other, each from a clean Dynamo."""
    with group():
        for check in checks:
            torch._dynamo.reset()
            check()
            if dist.get_rank() == 0:
                print(f"passed: {check.__name__}", flush=True)
