"""Regions: parts of a graph that become calls of functions, one function for all that are alike.

    before                         after

    a = mm(x, v)                   a = mm(x, v)
    b = abs(a)      ┐              d = code_0(a)          code_0(i):
    c = amax(b)     │ a region     e = mm(a, w)               b = abs(i)
    d = div(a, c)   ┘              h = code_0(e)              c = amax(b)
    e = mm(a, w)                   return e, d, h             d = div(i, c)
    f = abs(e)      ┐                                         return d
    g = amax(f)     │ one that
    h = div(e, g)   ┘ is like it
    return e, d, h

A call stands where the last operator of its region stood, or before whoever reads a result earlier than that. What it
gives has the names of what it stands for; all other operators stay as they are, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.inline import signature
from fxapprox.ir.tensors import storage_of

# (graph, name of the function, operands, results of the region) -> what stands for these results
Call: TypeAlias = Callable[[fx.Graph, str, Sequence[fx.Node], Sequence[fx.Node]], Sequence[fx.Node]]


@dataclass(frozen=True)
class Region:
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
    def of(cls, nodes: Iterable[fx.Node]) -> Region:
        """The region of these operators of one graph."""
        ordered = tuple(sorted(nodes))
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

    def place(self) -> fx.Node:
        """The node before which a call has to stand, or in whose place."""
        return min((self.nodes[-1], *self.readers()))

    def can_be_called(self) -> bool:
        """Whether a call at its place computes the same, and gives results that share no memory."""
        first = min(self.readers(), default=None)
        owners = [storage_of(node) for node in self.results]
        read = first is not None and all(source < first for source in self.inputs)
        return read and len(set(owners)) == len(owners) and set(self.nodes).issuperset(owners)

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


def replace_by_calls(
    gm: fx.GraphModule, name: str, functions: Sequence[tuple[fx.GraphModule, Sequence[Region]]], call: Call
) -> fx.GraphModule:
    """A copy of the graph that calls functions in place of regions; the graph itself if there are none.

    Args:
        name: what the functions are called, with a number behind it.
        functions: each with the regions for which it stands; no operator is in two of them.
        call: how they are called.
    """
    if not functions:
        return gm
    attributes: dict[str, Any] = {n.target: attrgetter(n.target)(gm) for n in gm.graph.find_nodes(op="get_attr")}
    calls: dict[fx.Node, list[tuple[str, Region]]] = {}
    inner: set[fx.Node] = set()
    for number, (function, regions) in enumerate(functions):
        attributes[title := f"{name}_{number}"] = function
        for region in regions:
            calls.setdefault(region.place(), []).append((title, region))
            inner.update(region.nodes)
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
