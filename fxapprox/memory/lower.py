"""From a graph to the kernels that it becomes."""

from __future__ import annotations

from itertools import pairwise

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.memory.fuse import fuse
from fxapprox.memory.kernels import Kernel, Lowered
from fxapprox.memory.realize import Realizer


def lower(gm: fx.GraphModule, *, lowering: str, channels_last: bool, half: adapter.Half | None) -> Lowered:
    """The kernels that a graph becomes.

    Args:
        lowering: "inductor", or "eager": every node is a kernel.
        channels_last: whether Inductor lays out forward's images so: what convolutions make, and what is saved.
        half: which one of ours the graph is: expressions may be longer there; None: it is plain torch.compile's.
    """
    eager = lowering == "eager"
    lowered = Realizer(adapter.realize_limits(gm, half), eager, channels_last)
    for node in gm.graph.nodes:
        lowered.run(node)
    operations = lowered.operations
    if eager:
        kernels = [Kernel(o.name, o.makes, o.reads, external=True, scratch=o.scratch) for o in operations]
    else:
        kernels = fuse(operations, {id(v) for v in lowered.outputs if v is not None})
        if lowered.on_cpu:  # loops up to the next external kernel are one C++ function
            for kernel, following in pairwise(kernels):
                kernel.frees = kernel.external or following.external
    return Lowered(kernels, lowered.inputs, lowered.outputs)
