"""From a graph to the kernels that it becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.memory.fuse import fuse
from fxapprox.memory.kernels import Kernel, Lowered
from fxapprox.memory.realize import Realizer


def lower(
    gm: fx.GraphModule, *, lowering: str, channels_last: bool, half: adapter.Half | None,
    slices: Iterable[Collection[str]] = (),
) -> Lowered:  # fmt: skip
    """The kernels that a graph becomes.

    Args:
        lowering: "inductor", or "eager": every node is a kernel.
        channels_last: whether Inductor lays out forward's images so: what convolutions make, and what is saved.
        half: which one of ours the graph is: expressions may be longer there; None: it is plain torch.compile's.
        slices: names of the operators of each slice, which becomes a function.
    """
    eager = lowering == "eager"
    lowered = Realizer(adapter.realize_limits(gm, half), eager, channels_last)
    part_of = {name: number for number, names in enumerate(slices) for name in names}
    for node in gm.graph.nodes:
        lowered.run(node, part_of.get(node.name))
    operations = lowered.operations
    if eager:
        kernels = [Kernel(o.name, o.makes, o.reads, external=True, scratch=o.scratch) for o in operations]
    else:
        kernels = fuse(operations, {id(v) for v in lowered.outputs if v is not None})
        if lowered.on_cpu:  # loops up to the next external kernel are one C++ function
            for kernel, following in pairwise(kernels):
                kernel.frees = kernel.external or following.external or kernel.part != following.part
    return Lowered(kernels, lowered.inputs, lowered.outputs)
