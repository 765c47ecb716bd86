"""DistributedDataParallel: plans and gradients of several processes against one."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fxapprox
from tests.workers.common import (
    ROUNDING,
    Blocks,
    assert_close,
    assert_same_plans,
    averaged,
    blocks,
    gradient,
    gradients,
    mine,
    rows,
    run,
    some,
)

compiled = partial(fxapprox.compile, lowering="eager", strict=True)


def outside(model: nn.Module, **options: Any) -> nn.Module:
    """Compiled around DDP."""
    return compiled(DistributedDataParallel(model), **options)


def inside(model: nn.Module, **options: Any) -> nn.Module:
    """DDP around what is compiled."""
    return DistributedDataParallel(compiled(model, **options))


def one_process_and_exact() -> None:
    x = rows(128)
    for wrap in (outside, inside):
        model = blocks(1)
        wanted = gradient(model, copy.copy(model), x)
        run = wrap(model, bits=None)
        assert_close(gradient(model, run, mine(x)), wanted, ROUNDING)
        assert_same_plans(fxapprox.reports(run))


def codes_are_those_of_one_process() -> None:
    x = rows(128)
    for wrap in (outside, inside):
        for bits in some(8, 4):
            model = blocks(1)
            alone = copy.deepcopy(model)
            wanted = averaged(gradient(alone, compiled(alone, bits=bits), mine(x)))
            run = wrap(model, bits=bits)
            assert_close(gradient(model, run, mine(x)), wanted, ROUNDING)
            assert_same_plans(fxapprox.reports(run))


def graphs_split_at_buckets() -> None:
    x = rows(64, width=256)
    model = blocks(3, width=256, inner=512)  # 1.6 MB of parameters each: more than DDP's first bucket
    wanted = gradient(model, copy.copy(model), x)
    for bits, bound in some((8, 0.02), (4, 0.15), (None, ROUNDING)):
        torch._dynamo.reset()
        run = outside(model, bits=bits)
        assert_close(gradient(model, run, mine(x)), wanted, bound)
        assert len(fxapprox.reports(run)) > 1, "DDPOptimizer split nothing"
        assert_same_plans(fxapprox.reports(run))


def accumulation_without_sync() -> None:
    x, y = rows(128), rows(128, seed=1)
    for wrap in some(outside, inside):
        for bits in some(8, None):
            model = blocks(1)
            alone = copy.deepcopy(model)
            wanted = averaged(gradient(alone, compiled(alone, bits=bits), mine(x), mine(y)))
            run = wrap(model, bits=bits)
            parallel = run if isinstance(run, DistributedDataParallel) else run._orig_mod
            model.zero_grad()
            for part, context in ((x, parallel.no_sync()), (y, nullcontext())):
                with context:
                    run(mine(part)).square().mean().backward()
            assert_close(gradients(model), wanted, ROUNDING)


def plans_do_not_depend_on_data() -> None:
    x = rows(128, seed=dist.get_rank())
    settings: tuple[dict[str, Any], ...] = (
        {"bits": "auto"}, {"memory_budget": 0.9}, {"bits": 4, "checkpoint": "sqrt"}, {"bits": 4, "dynamic": True},
    )  # fmt: skip
    for options in some(*settings, first=2):
        torch._dynamo.reset()
        model = blocks(2)
        run = outside(model, min_bytes=0, **options)
        run(x * (1 + 10 * dist.get_rank())).square().mean().backward()
        assert_same_plans(fxapprox.reports(run))


def sensitivities_of_one_process_for_all() -> None:
    x = rows(128, seed=dist.get_rank())
    model = blocks(1)
    found = [None]
    if dist.get_rank() == 0:
        found = [fxapprox.calibrate(model, lambda out: out.square().mean(), x, progress=False)]
    dist.broadcast_object_list(found)
    run = outside(model, bits="auto", average_bits=5, sensitivities=found[0])
    run(x).square().mean().backward()
    assert_same_plans(fxapprox.reports(run))


def one_bound_and_one_plan() -> None:
    """What the first process has measured on its rows is every process's plan."""
    x = rows(128, seed=dist.get_rank())
    for wrap in (outside, inside):
        torch._dynamo.reset()
        model = blocks(2)
        run = wrap(model, min_bytes=0, error=0.05)
        run(x * (1 + 10 * dist.get_rank())).square().mean().backward()
        alone = copy.deepcopy(model)
        wanted = averaged(gradient(alone, alone, x))
        assert_close(gradient(model, run, x), wanted, 0.06)
        assert_same_plans(fxapprox.reports(run))


class ConvNet(Blocks):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(16, 8, 3),
            nn.Flatten(),
        )


def buffers_and_dropout() -> None:
    """DDP sends rank 0's running statistics before each forward; forward moves them, backward must not mind."""
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(dist.get_rank()))
    found = []
    for bits in (None, 8):
        torch._dynamo.reset()
        model = ConvNet()
        run = outside(model, bits=bits)
        torch.manual_seed(dist.get_rank())
        found += [gradient(model, run, images) for _ in range(2)]
        found.append(torch.cat([b.flatten().float() for b in model.buffers()]))
    exact, coded = found[:3], found[3:]
    for a, b, bound in zip(coded, exact, (0.02, 0.02, 0.0), strict=True):
        assert_close(a, b, bound)


if __name__ == "__main__":
    run(
        one_process_and_exact, codes_are_those_of_one_process, graphs_split_at_buckets, accumulation_without_sync,
        plans_do_not_depend_on_data, sensitivities_of_one_process_for_all, one_bound_and_one_plan,
        buffers_and_dropout,
    )  # fmt: skip
