"""FSDP2 (fully_shard): plans and gradients of several processes against one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import fxapprox
from tests.workers.common import (
    ROUNDING,
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


def sharded(model: nn.Sequential, **settings: Any) -> nn.Sequential:
    """Each block by itself, and the rest."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model:
        fully_shard(block, mesh=mesh, **settings)
    return fully_shard(model, mesh=mesh, **settings)


def by_block(model: nn.Sequential, **options: Any) -> nn.Sequential:
    """Each block compiled in place."""
    for block in model:
        block.compile(backend="fxapprox", options={"lowering": "eager", "strict": True, **options})
    return model


def whole(model: nn.Sequential, **options: Any) -> nn.Module:
    """The model compiled; FSDP2's hooks break it into graphs."""
    return fxapprox.compile(model, lowering="eager", strict=True, **options)


Way = Callable[..., Any]


def one_process_and_exact() -> None:
    x = rows(128)
    wanted = gradient(model := blocks(2), copy.copy(model), x)
    cases: tuple[tuple[Way, bool], ...] = ((by_block, True), (whole, False), (by_block, False), (whole, True))
    for way, reshard in some(*cases, first=2):
        torch._dynamo.reset()
        model = sharded(blocks(2), reshard_after_forward=reshard)
        run = way(model, bits=None)
        assert_close(gradient(model, run, mine(x)), wanted, ROUNDING)
        assert_same_plans(fxapprox.reports(run))


def codes_are_those_of_one_process() -> None:
    x = rows(128)
    coded: dict[str, Any] = {"bits": 8}
    cases: tuple[tuple[Way, dict[str, Any]], ...] = (
        (by_block, {"bits": 4, "checkpoint": 2}), (whole, coded), (by_block, coded), (whole, {"bits": "auto"}),
    )  # fmt: skip
    for way, options in some(*cases, first=2):
        alone = blocks(2)
        wanted = averaged(gradient(alone, by_block(alone, **options), mine(x)))
        torch._dynamo.reset()
        model = sharded(blocks(2))
        run = way(model, **options)
        assert_close(gradient(model, run, mine(x)), wanted, ROUNDING)
        assert_same_plans(fxapprox.reports(run))
        assert all(report.saved_bytes < report.baseline_bytes for report in fxapprox.reports(run))


def accumulation_without_sync() -> None:
    x, y = rows(128), rows(128, seed=1)
    for bits in some(8, None):
        torch._dynamo.reset()
        alone = blocks(2)
        wanted = averaged(gradient(alone, by_block(alone, bits=bits), mine(x), mine(y)))
        model = by_block(sharded(blocks(2)), bits=bits)
        model.zero_grad()
        for part, last in ((x, False), (y, True)):
            model.set_requires_gradient_sync(last)
            model(mine(part)).square().mean().backward()
        assert_close(gradients(model), wanted, ROUNDING)


def mixed_precision() -> None:
    x = rows(128)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = []
    for bits in (None, 8):
        torch._dynamo.reset()
        model = by_block(sharded(blocks(2), mp_policy=policy), bits=bits)
        found.append(gradient(model, model, mine(x)))
        assert_same_plans(fxapprox.reports(model))
    assert_close(found[1], found[0], 0.02)


if __name__ == "__main__":
    run(one_process_and_exact, codes_are_those_of_one_process, accumulation_without_sync, mixed_precision)
