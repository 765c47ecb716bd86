"""The processes of DistributedDataParallel, while its forward runs."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def agreed_on(value: T) -> T:
    """What the first process has, where DistributedDataParallel's forward runs; the value itself elsewhere.

    All its processes have to ask.
    """
    model = DistributedDataParallel._get_active_ddp_module() if dist.is_available() else None
    group = model.process_group if model is not None else None
    if group is None or dist.get_world_size(group) == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, dist.get_global_rank(group, 0), group)
    return held[0]


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
