"""Makes one function of codes that are encoded or decoded alike, and a call of each.

Inductor lowers, fuses and prints every operator of every layer before it finds the C++ code to be that of the layer
before. A code of a group has some seventy operators, and a network stores tens of such codes of few shapes. As a
function (``invoke_subgraph``, as ``torch.compiler.nested_compile_region`` makes it) each shape's is compiled once.

Such a function's kernels fuse with nothing around it, so a code becomes one only where that moves no more memory: an
encoder reads its value once, in a loop over groups, whichever loop it stands in; a decoder writes its value, so only
those become functions whose value is read by products alone, which want it in memory. Of the other encoders and
decoders the pointwise operators become functions that Inductor lowers once and fuses with whatever is around them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import channels_last_images
from fxapprox.ir.inline import signature
from fxapprox.ir.operators import is_view
from fxapprox.ir.records import Slices, Spliced
from fxapprox.ir.tensors import flops, has_fixed_sizes, is_fixed_on_cpu, storage_of, tensor_of
from fxapprox.torch_adapter import Partition

FEWEST, FEWEST_INLINED, FEWEST_SLICED = 16, 6, 2  # operators: less is not worth a call
Call = Callable[[fx.Graph, str, Sequence[fx.Node], Sequence[fx.Node]], Sequence[fx.Node]]
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
    """A graph with a call of one function for all slices of a part that are of one size.

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


@dataclass(frozen=True)
class _Region:
    """Operators that become a call.

    Attributes:
        inputs: what they read from elsewhere, in the order in which they do.
        nodes: the operators, in the graph's order.
        results: those that are read elsewhere.
    """

    inputs: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]

    @classmethod
    def of(cls, nodes: Iterable[fx.Node], position: Mapping[fx.Node, int]) -> _Region:
        ordered = tuple(sorted(nodes, key=position.__getitem__))
        inside = set(ordered)
        inputs = dict.fromkeys(source for node in ordered for source in node.all_input_nodes if source not in inside)
        results = tuple(node for node in ordered if not inside.issuperset(node.users))
        return cls(tuple(inputs), ordered, results)

    def key(self) -> Hashable:
        """Equal for two regions that compute the same from inputs that look the same."""
        number = {node: i for i, node in enumerate((*self.inputs, *self.nodes))}
        operators = tuple(
            (node.target, repr(fx.map_arg((node.args, dict(node.kwargs)), lambda n: f"%{number[n]}")))
            for node in self.nodes
        )
        return (
            tuple(signature(node.meta["val"]) for node in self.inputs),
            operators,
            tuple(number[node] for node in self.results),
        )

    def readers(self) -> list[fx.Node]:
        """Who reads the results."""
        inside = set(self.nodes)
        return [user for node in self.results for user in node.users if user not in inside]

    def function(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The operators as a module of their own."""
        graph = fx.Graph()
        env = {}
        for node in self.inputs:
            env[node] = graph.placeholder(node.name)
            env[node].meta["val"] = node.meta["val"]
        for node in self.nodes:
            env[node] = adapter.copy_node(node, graph, env.__getitem__)
        graph.output(tuple(env[node] for node in self.results))
        return adapter.function_of_ours(graph, gm)


def _outlined(
    gm: fx.GraphModule, name: str, codes: Iterable[Sequence[str]], call: Call, fewest: int,
    *conditions: Callable[[_Region], bool],
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
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    alike: dict[Hashable, list[_Region]] = {}
    taken: set[fx.Node] = set()
    for names in codes:
        for inside in parts({nodes[n] for n in names if n in nodes}):
            if len(inside) < fewest or inside & taken:
                continue
            region = _Region.of(inside, position)
            if _can_be_called(region, position) and all(holds(region) for holds in conditions):
                taken |= inside
                alike.setdefault(region.key(), []).append(region)
    return _with_calls(gm, name, [regions for regions in alike.values() if len(regions) > 1], call)


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


def _with_calls(gm: fx.GraphModule, name: str, functions: Sequence[Sequence[_Region]], call: Call) -> fx.GraphModule:
    """A copy of the graph that calls a function in place of regions that are alike; the graph itself if none are."""
    if not functions:
        return gm
    attributes: dict[str, Any] = {n.target: attrgetter(n.target)(gm) for n in gm.graph.find_nodes(op="get_attr")}
    calls: dict[fx.Node, list[tuple[str, _Region]]] = {}  # by the last operator, or by who reads a result before that
    inner: set[fx.Node] = set()
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    for number, regions in enumerate(functions):
        attributes[title := f"{name}_{number}"] = regions[0].function(gm)
        for region in regions:
            place = min((region.nodes[-1], *region.readers()), key=position.__getitem__)
            calls.setdefault(place, []).append((title, region))
        inner.update(node for region in regions for node in region.nodes)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        for title, region in calls.get(node, ()):
            made = call(graph, title, [env[source] for source in region.inputs], region.results)
            env.update(zip(region.results, made, strict=True))
        if node not in inner:
            env[node] = adapter.copy_node(node, graph, env.__getitem__)
    copied = fx.GraphModule(attributes, graph)
    copied.meta.update(gm.meta)
    return copied


def _can_be_called(region: _Region, position: Mapping[fx.Node, int]) -> bool:
    """Whether a call at the last operator's place, or before whoever reads a result before that, computes the same."""
    first = min((position[reader] for reader in region.readers()), default=-1)
    owners = [storage_of(node) for node in region.results]
    read = all(position[source] < first for source in region.inputs)
    return read and len(set(owners)) == len(owners) and set(region.nodes).issuperset(owners)


def _may_read(region: _Region) -> bool:
    """Whether the inputs can come from memory: on the CPU, of fixed sizes, and the same bits there."""
    for node in region.inputs:
        value = tensor_of(node)
        if value is None or not is_fixed_on_cpu(value):
            return False
        if value.dtype.is_floating_point and value.dtype not in WHOLE and not _in_memory(node):
            return False
    return True


def _reads_tensors(region: _Region) -> bool:
    """Whether no size is among the inputs."""
    return all(tensor_of(node) is not None for node in region.inputs)


def _reads_fixed_sizes(region: _Region) -> bool:
    """Whether the inputs are tensors without a symbol in their sizes."""
    values = [tensor_of(node) for node in region.inputs]
    return all(value is not None and has_fixed_sizes(value) for value in values)


def _in_memory(node: fx.Node) -> bool:
    owner = storage_of(node)
    return owner.op == "placeholder" or flops(owner) > 0


def _read_by_products(region: _Region) -> bool:
    """Whether nothing but products reads the results: Inductor has to write them into memory."""
    stack = region.readers()
    while stack:
        node = stack.pop()
        if is_view(node):
            stack += node.users
        elif not flops(node):
            return False
    return True
