"""What has to hold of a joint graph's two halves after every pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.arguments import operands
from fxapprox.ir.operators import is_label, op_name, table_use
from fxapprox.ir.source import source_line
from fxapprox.ir.tensors import is_float, symbolic_shape, tensor_of


def verify(backward: fx.GraphModule, approximate: Mapping[fx.Node, str]) -> None:
    """Proves that nothing in the backward graph decides on an approximate value.

    Follows every decoded value forward as long as no tangent is involved, and raises where an operator that needs
    its operand exactly (a comparison, a divisor, an unknown operator) would read one.

    Args:
        approximate: the decoded values, and the names of those that they stand for.

    Raises:
        UnsupportedGraph: such an operator exists; the message names it, and the error has the values that it reads.
    """
    tainted = {node: frozenset((name,)) for node, name in approximate.items()}
    gradient: set[fx.Node] = {n for n in backward.graph.nodes if adapter.is_tangent(n)}
    for node in backward.graph.nodes:
        if node.op in ("placeholder", "output") or node in approximate:
            continue
        touched = [(position, source) for position, source in operands(node) if source in tainted]
        if any(source in gradient for source in node.all_input_nodes):
            gradient.add(node)
        elif touched:
            tainted[node] = frozenset[str]().union(*(tainted[source] for _, source in touched))
        value = tensor_of(node)
        decides = value is not None and (not is_float(value.dtype) or is_label(node))
        if touched and node not in gradient and decides:
            raise UnsupportedGraph(
                "verify", f"{op_name(node)} would take a decision from an approximate value",
                node=node.name, source=source_line(node), values=_read(touched, tainted),
            )  # fmt: skip
        for position, source in touched:
            if table_use(node, position) is None:
                raise UnsupportedGraph(
                    "verify", f"unknown operator {op_name(node)} reads the approximate value {source.name!r}",
                    node=node.name, source=source_line(node), values=_read(touched, tainted),
                )  # fmt: skip


def verify_halves(forward: fx.GraphModule, backward: fx.GraphModule, num_fwd_outputs: int, after: str) -> None:
    """Checks that both graphs are well formed, and that backward takes what forward saves.

    Args:
        num_fwd_outputs: how many of forward's outputs are the user's; the rest is saved.
        after: the pass that left them so, for the message.

    Raises:
        UnsupportedGraph: they do not fit together.
    """
    for half in (forward, backward):
        try:
            half.graph.lint()
        except RuntimeError as error:
            first = str(error).partition("\n")[0]  # torch adds the whole graph
            raise UnsupportedGraph("verify", f"{after} left a graph that is not well formed: {first}") from error
    (output,) = forward.graph.find_nodes(op="output")
    saved = [_described(node) for node in output.args[0][num_fwd_outputs:] if isinstance(node, fx.Node)]
    taken = [_described(node) for node in backward.graph.find_nodes(op="placeholder") if not adapter.is_tangent(node)]
    if sorted(filter(None, saved)) != sorted(filter(None, taken)) or len(saved) != len(taken):
        raise UnsupportedGraph("verify", f"after {after}, backward does not take what forward saves")


def _described(node: fx.Node) -> str:
    """Type and sizes of a tensor; "" of what is none."""
    value = tensor_of(node)
    return "" if value is None else f"{value.dtype} {symbolic_shape(value)}"


def _read(operands: Iterable[tuple[int, fx.Node]], tainted: Mapping[fx.Node, frozenset[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for _, source in operands for name in tainted[source]}))
