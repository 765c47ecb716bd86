"""Plain torch.compile, the baseline of the benchmarks, in both lowerings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxapprox import torch_adapter as adapter


def plain(model: Callable[..., Any], lowering: str, dynamic: bool | None = None) -> Any:
    """What torch.compile alone makes of the model.

    With lowering "eager", the graphs of torch's own partition run operator by operator, after the same passes that
    Inductor and fxapprox run over the joint graph: random numbers are those of ``fxapprox.compile(lowering="eager")``,
    which backend="aot_eager_decomp_partition" draws in another way.
    """
    return torch.compile(model, backend="inductor" if lowering == "inductor" else _eagerly, dynamic=dynamic)


def _eagerly(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return adapter.compile_eager(gm, inputs, adapter.JointPartitioner(_partition, None), {})


def _partition(gm: fx.GraphModule, inputs: Sequence[Any], **rest: Any) -> adapter.Partition:
    adapter.seed_random_numbers(gm)
    return adapter.exact_partition(gm, inputs, **rest)
