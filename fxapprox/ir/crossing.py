"""What crosses from the forward graph to the backward graph, and how to change it.

Forward returns the user's outputs, then the saved tensors, then opaque objects and symbolic sizes; backward takes
symbolic sizes, the saved tensors in the same order, opaque objects and the tangents: AOTAutograd's calling convention.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import UnsupportedGraph


class Crossing:
    """The saved values of two graphs that belong together.

    Attributes:
        inputs: {what forward returns: the input by which backward takes it}, tensors only, in order.
    """

    def __init__(self, forward: fx.GraphModule, backward: fx.GraphModule, num_fwd_outputs: int) -> None:
        self._forward, self._backward = forward, backward
        (self._output,) = forward.graph.find_nodes(op="output")
        values: list[Any] = list(self._output.args[0])  # type: ignore[arg-type]
        about = list(self._output.meta.get("desc") or [None] * len(values))
        self._own = list(zip(values, about, strict=True))[:num_fwd_outputs]
        saved = list(zip(values, about, strict=True))[num_fwd_outputs:]
        self._tensors = {node: about for node, about in saved if _is_tensor(node)}
        self._others = [(node, about) for node, about in saved if not _is_tensor(node)]
        inputs = backward.graph.find_nodes(op="placeholder")
        taken = [node for node in inputs if _is_tensor(node) and not adapter.is_tangent(node)]
        if len(taken) != len(self._tensors):
            why = f"forward saves {len(self._tensors)} tensors, backward takes {len(taken)}"
            raise UnsupportedGraph("checkpoint", why)
        self.inputs: dict[fx.Node, fx.Node] = dict(zip(self._tensors, taken, strict=True))
        sizes = [node for node, _ in self._others if adapter.is_symbolic_scalar(node)]
        self._sizes = dict(zip(sizes, (n for n in inputs if adapter.is_symbolic_scalar(n)), strict=False))
        self._dropped: set[fx.Node] = set()

    def drop(self, values: Collection[fx.Node]) -> None:
        """Saves these no more; backward's inputs must have no reader left."""
        for node in values:
            self._backward.graph.erase_node(self.inputs.pop(node))
            del self._tensors[node]

    def take(self, node: fx.Node) -> fx.Node:
        """Backward's input for a tensor or a size of forward, which is saved from now on if it was not."""
        if adapter.is_symbolic_scalar(node):
            return self._take_size(node)
        if node not in self.inputs:
            after = next(reversed(self.inputs.values()), None) or next(reversed(self._sizes.values()), None)
            self.inputs[node] = self._placeholder(node, after)
            self._tensors[node] = None
        return self.inputs[node]

    def _take_size(self, node: fx.Node) -> fx.Node:
        if node not in self._sizes:
            self._sizes[node] = self._placeholder(node, next(reversed(self._sizes.values()), None))
            self._others.append((node, None))
        return self._sizes[node]

    def _placeholder(self, node: fx.Node, after: fx.Node | None) -> fx.Node:
        graph = self._backward.graph
        first = next(iter(graph.nodes))
        with graph.inserting_before(first) if after is None else graph.inserting_after(after):
            made = graph.placeholder(node.name)
        made.target = made.name  # parameters are named by targets: one may be another node's name
        made.meta.update({key: node.meta[key] for key in ("val", "tensor_meta", "desc") if key in node.meta})
        return made

    def write(self) -> None:
        """Lets forward return what is saved now."""
        everything = [*self._own, *self._tensors.items(), *self._others]
        values = [value for value, _ in everything]
        self._output.args = (tuple(values),)
        self._output.meta["desc"] = [about for _, about in everything]
        traces = [v.meta.get("stack_trace") if isinstance(v, fx.Node) else None for v in values]
        self._output.meta["output_stack_traces"] = traces
        self._output.meta.pop("val", None)


def _is_tensor(node: fx.Node) -> bool:
    return not adapter.is_symbolic_scalar(node) and not adapter.is_opaque(node)
