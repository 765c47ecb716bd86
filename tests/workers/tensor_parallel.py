"""Tensor parallelism with DTensor: collectives inside of the graphs, and gradients against one process."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import fxapprox
from fxapprox.ir.operators import op_name
from tests.workers.common import ROUNDING, assert_close, assert_same_plans, blocks, gradient, mine, rows, run, some

SETTINGS: tuple[tuple[dict[str, Any], float], ...] = (
    ({"bits": 8, "checkpoint": 3, "checkpoint_bits": 8}, 0.04), ({"bits": 4}, 0.2), ({"bits": None}, ROUNDING),
    ({"bits": 8}, 0.02), ({"bits": None, "checkpoint": "sqrt"}, ROUNDING), ({"memory_budget": 0.9}, 0.2),
)  # fmt: skip


def by_columns_and_rows(model: nn.Module) -> nn.Module:
    """Weights split, activations between blocks whole: one sum over processes for each block."""
    split = {"*.up": ColwiseParallel(), "*.gate": ColwiseParallel(), "*.down": RowwiseParallel()}
    return parallelize_module(model, _mesh(), split)


def by_sequence(model: nn.Module) -> nn.Module:
    """Between blocks each process has some of the rows; they are gathered for the products, and the sums scattered."""
    columns = ColwiseParallel(input_layouts=Shard(0))
    sums = RowwiseParallel(output_layouts=Shard(0))
    norm = SequenceParallel(sequence_dim=0)
    return parallelize_module(model, _mesh(), {"*.norm": norm, "*.up": columns, "*.gate": columns, "*.down": sums})


def _mesh() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def collectives(*graphs: fx.GraphModule | None) -> Counter[str]:
    """How often each communicates."""
    names = (op_name(node) for gm in graphs if gm is not None for node in gm.graph.nodes)
    return Counter(name for name in names if name.startswith("_c10d_functional."))


def check(parallel: Callable[[nn.Module], nn.Module], options: dict[str, Any], bound: float) -> None:
    x = rows(128)
    whole = blocks(2)
    wanted = gradient(whole, copy.copy(whole), x)
    model = parallel(blocks(2))
    run = fxapprox.compile(model, lowering="eager", strict=True, min_bytes=0, **options)
    if parallel is by_sequence:  # each process takes the mean over its own rows
        x, wanted = mine(x), wanted * dist.get_world_size()
    assert_close(gradient(model, run, x), wanted, bound)
    reports = fxapprox.reports(run)
    assert_same_plans(reports)
    for report in reports:
        assert collectives(report.joint), "no communication in the graph"
        assert collectives(report.forward, report.backward) == collectives(report.joint)
        assert report.saved_bytes <= report.baseline_bytes


def columns_and_rows() -> None:
    for options, bound in some(*SETTINGS):
        torch._dynamo.reset()
        check(by_columns_and_rows, options, bound)


def sequence() -> None:
    for options, bound in some(*SETTINGS[1:], SETTINGS[0]):
        torch._dynamo.reset()
        check(by_sequence, options, bound)


if __name__ == "__main__":
    run(columns_and_rows, sequence)
