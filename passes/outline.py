"""Makes one function of codes that are encoded or decoded alike, and a call of each.

Inductor lowers, fuses and prints every operator of every layer before it finds the C++ code to be that of the layer
before. A code of a group has some seventy operators, and a network stores tens of such codes of few shapes. As a
function (``invoke_subgraph``, as ``torch.compiler.nested_compile_region`` makes it) each shape's is compiled once.

Such a function's kernels fuse with nothing around it, so a code becomes one only where that moves no more memory: an
encoder reads its value once, in a loop over groups, whichever loop it stands in; a decoder writes its value, so only
those become functions whose value is read by products alone, which want it in memory. Of the other encoders and
decoders the pointwise operators become functions that Inductor lowers once and fuses with whatever is around them.

What becomes a call is a region: ``ir/regions.py`` draws one before and after. Here is chosen which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import channels_last_images
from fxapprox.ir.operators import is_view
from fxapprox.ir.records import Slices, Spliced
from fxapprox.ir.regions import Call, Region, replace_by_calls
from fxapprox.ir.tensors import flops, has_fixed_sizes, is_fixed_on_cpu, storage_of, tensor_of
from fxapprox.torch_adapter import Partition

FEWEST, FEWEST_INLINED, FEWEST_SLICED = 16, 6, 2  # operators: less is not worth a call
WHOLE = (torch.float32, torch.float64)  # a value of fewer bits is read unrounded by what Inductor fuses with it


def call_codes(forward: fx.GraphModule, backward: fx.GraphModule, codes: Sequence[Spliced]) -> Partition:
    """The two graphs with calls in place of encoders and decoders that others are like.

    Requires: the graphs as they go to Inductor, and the names of their codecs' operators.
    Ensures: the graphs given are untouched; inputs, outputs and all other operators are the same, in the same order.
    Changes numerics: no.

    Encoders are not called on other devices than the CPU (there each call is a launch or more, and fusing is what
    counts), nor of images that Inductor lays out channels-last.
    """
    images = channels_last_images(forward)
    encoders = [code.encode for code in codes if code.value not in images]
    decoders = [code.decode for code in codes if code.value not in images]
    call = adapter.call_function
    return (
        _outlined(forward, "encode", encoders, call, FEWEST, _may_read),
        _outlined(backward, "decode", decoders, call, FEWEST, _may_read, _read_by_products),
    )


def call_slices(gm: fx.GraphModule, slices: Sequence[Slices]) -> fx.GraphModule:
    """A graph, of either half, with a call of one function for all slices of a part that are of one size.

    Requires: the graph as it goes to Inductor.
    Ensures: the graph given is untouched; inputs, outputs and all other operators are the same, in the same order.
    Changes numerics: no.
    """
    names = [names for part in slices for names in part.names]
    return _outlined(gm, "slice", names, adapter.call_function, FEWEST_SLICED)


def inline_codes(forward: fx.GraphModule, backward: fx.GraphModule, codes: Sequence[Spliced]) -> Partition:
    """The two graphs with functions, which Inductor lowers once, in place of other encoders' and decoders' operators.

    Requires: the graphs as ``call_codes`` leaves them, and the names of their codecs' operators.
    Ensures: as there.
    Changes numerics: no.

    Encoders of symbolic sizes, and decoders that read such sizes, are left as they stand.
    """
    encoders, decoders = [code.encode for code in codes], [code.decode for code in codes]
    call, fewest = adapter.call_inlined, FEWEST_INLINED
    return (
        _outlined(forward, "encoded", encoders, call, fewest, _reads_fixed_sizes, parts=_pointwise_parts),
        _outlined(backward, "decoded", decoders, call, fewest, _reads_tensors, parts=_pointwise_end),
    )


def _outlined(
    gm: fx.GraphModule, name: str, codes: Iterable[Sequence[str]], call: Call, fewest: int,
    *conditions: Callable[[Region], bool],
    parts: Callable[[set[fx.Node]], Iterable[set[fx.Node]]] = lambda nodes: [nodes],
) -> fx.GraphModule:  # fmt: skip
    """A copy of the graph with calls in place of codes, or of parts of each; the graph itself if no two are alike.

    Args:
        name: what functions are called, with a number behind it.
        call: how they are called.
        fewest: operators that are worth a call.
        conditions: what a region has to fulfil.
    """
    nodes = {node.name: node for node in gm.graph.nodes}
    alike: dict[Hashable, list[Region]] = {}
    taken: set[fx.Node] = set()
    for names in codes:
        for inside in parts({nodes[n] for n in names if n in nodes}):
            if len(inside) < fewest or inside & taken:
                continue
            region = Region.of(inside)
            if region.can_be_called() and all(holds(region) for holds in conditions):
                taken |= inside
                alike.setdefault(region.key(), []).append(region)
    several = [regions for regions in alike.values() if len(regions) > 1]
    return replace_by_calls(gm, name, [(regions[0].function(gm), regions) for regions in several], call)


def _pointwise_end(nodes: set[fx.Node]) -> list[set[fx.Node]]:
    """The operators that can be inlined, but those from which others follow that cannot."""
    inside = set(nodes)
    stack = [node for node in nodes if not adapter.can_be_inlined(node)]
    while stack:
        node = stack.pop()
        if node in inside or (node not in nodes and is_view(node)):  # a call's operand in another shape
            inside.discard(node)
            stack += node.all_input_nodes
    return [inside]


def _pointwise_parts(nodes: set[fx.Node]) -> list[set[fx.Node]]:
    """The operators that can be inlined, in as many parts as others stand between them; no view of what is outside.

    Each is in the last part that it can be in, so that few values are passed from one part to a later one.
    """
    ordered = sorted(nodes)
    stages: dict[fx.Node, int] = {}
    for node in ordered:
        sources = [source for source in node.all_input_nodes if source in stages]
        stages[node] = max((stages[source] + (not adapter.can_be_inlined(source)) for source in sources), default=0)
    for node in reversed(ordered):
        if adapter.can_be_inlined(node) and nodes.issuperset(node.users):
            stages[node] = min((stages[user] for user in node.users), default=stages[node])
    parts: list[set[fx.Node]] = [set() for _ in range(1 + max(stages.values(), default=0))]
    for node, stage in stages.items():
        if adapter.can_be_inlined(node):
            parts[stage].add(node)
    return [{node for node in part if storage_of(node) in part} for part in parts]


def _may_read(region: Region) -> bool:
    """Whether the inputs can come from memory: on the CPU, of fixed sizes, and the same bits there."""
    for node in region.inputs:
        value = tensor_of(node)
        if value is None or not is_fixed_on_cpu(value):
            return False
        if value.dtype.is_floating_point and value.dtype not in WHOLE and not _in_memory(node):
            return False
    return True


def _reads_tensors(region: Region) -> bool:
    """Whether no size is among the inputs."""
    return all(tensor_of(node) is not None for node in region.inputs)


def _reads_fixed_sizes(region: Region) -> bool:
    """Whether the inputs are tensors without a symbol in their sizes."""
    values = [tensor_of(node) for node in region.inputs]
    return all(value is not None and has_fixed_sizes(value) for value in values)


def _in_memory(node: fx.Node) -> bool:
    owner = storage_of(node)
    return owner.op == "placeholder" or flops(owner) > 0


def _read_by_products(region: Region) -> bool:
    """Whether nothing but products reads the results: Inductor has to write them into memory."""
    stack = region.readers()
    while stack:
        node = stack.pop()
        if is_view(node):
            stack += node.users
        elif not flops(node):
            return False
    return True
