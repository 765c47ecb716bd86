"""The joint graph, with its two halves told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxapprox import torch_adapter as adapter


@dataclass(frozen=True)
class Joint:
    """A joint graph as AOTAutograd traces it: forward and backward in one graph, primals and tangents its inputs.

    Attributes:
        gm: the graph.
        num_fwd_outputs: how many of its outputs are forward's.
        static_inputs: positions of the inputs that stay where they are (parameters, buffers).
        gradients: names of the forward values that are gradients: those that a pass had forward compute.
        made: names of the inputs that are activations: other graphs of the model made them, and only backward would
            keep them.
        kept: names of the outputs that the model's next graph keeps alive, if backward reads them.
        backward: the nodes that need a tangent; every other node is a forward value.
    """

    gm: fx.GraphModule
    num_fwd_outputs: int
    static_inputs: tuple[int, ...] = ()
    gradients: frozenset[str] = frozenset()
    made: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    backward: frozenset[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        backward: set[fx.Node] = set()
        for node in self.gm.graph.nodes:
            pinned = adapter.is_tangent(node) or (node.op == "call_function" and adapter.must_be_in_backward(node))
            if pinned or any(source in backward for source in node.all_input_nodes):
                backward.add(node)
        object.__setattr__(self, "backward", frozenset(backward))

    @property
    def forward_values(self) -> Iterator[fx.Node]:
        """Every node that can be computed without a tangent, in order."""
        return (n for n in self.gm.graph.nodes if n.op != "output" and n not in self.backward)

    @property
    def alive(self) -> set[fx.Node]:
        """What is alive during backward anyway; views of it are, too."""
        given = (n for n in self.gm.graph.nodes if n.op in ("placeholder", "get_attr") and n.name not in self.made)
        return {*given, *(n for n in self.gm.graph.nodes if n.name in self.kept)}

    @property
    def outputs(self) -> tuple[list[Any], list[Any]]:
        """Forward's outputs and backward's (the gradients); entries may be None or numbers."""
        output = next(iter(self.gm.graph.find_nodes(op="output")))
        flat = adapter.flat_outputs(output)
        return flat[: self.num_fwd_outputs], flat[self.num_fwd_outputs :]


def erase_unused(graph: fx.Graph) -> None:
    """Erases what nobody reads, in one sweep; operators with effects stay."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph.erase_node(node)


def nodes_between(sources: Iterable[fx.Node], results: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """The operators that lead from ``sources`` (or from inputs) to ``results``, these among them."""
    seen, stack = set(sources), list(results)
    found = []
    while stack:
        node = stack.pop()
        if node not in seen and node.op == "call_function":
            seen.add(node)
            found.append(node)
            stack += node.all_input_nodes
    return tuple(found)
