"""Has nothing stored for its shape: backward's operators that read no more of a value get an empty one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.arguments import operands
from fxapprox.ir.inline import Inliner, signature
from fxapprox.ir.joint import Joint, erase_unused
from fxapprox.ir.operators import op_name, table_use
from fxapprox.ir.records import Use
from fxapprox.ir.tensors import is_dense, memory_order, storage_of, symbolic_shape, tensor_of


def stand_in(joint: Joint) -> Joint:
    """Puts tensors without content in place of forward values of which backward reads the shape alone.

    Requires: a prepared joint graph.
    Ensures: the graph given is untouched; the same inputs, outputs and values, under their names. A value stays where
        its sizes are not inputs of the graph.
    Changes numerics: no.

    Returns: the new joint graph; the one given, if there is no such operator.
    """
    found = [(node, place) for node in joint.gm.graph.nodes if node in joint.backward for place in _shapes(node, joint)]
    if not found:
        return joint
    graph, same = adapter.copy_graph(joint.gm.graph)
    gm = fx.GraphModule(joint.gm, graph)
    gm.meta = joint.gm.meta.copy()
    writer = Inliner(gm)
    for node, operand in found:
        value = tensor_of(operand)
        assert value is not None
        key = "empty", signature(value)
        (empty,) = writer.inline(lambda value=value: (_empty(value),), [], before=same[node], key=key)
        _replace(same[node], same[operand], empty)
    erase_unused(graph)
    return replace(joint, gm=gm)


def _shapes(node: fx.Node, joint: Joint) -> list[fx.Node]:
    """The operands of which a node reads the shape alone, and that may be replaced."""
    if node.op != "call_function":
        return []
    return [
        operand for place, operand in operands(node)
        if table_use(node, place) is Use.SHAPE and operand not in joint.backward and _is_computed(operand, joint)
        and _has_known_shape(operand, joint.gm)
    ]  # fmt: skip


def _is_computed(node: fx.Node, joint: Joint) -> bool:
    """Whether it is an activation, and not empty itself."""
    computed = node.op == "call_function" or node.name in joint.made
    return computed and op_name(storage_of(node)) not in ("aten.full", "aten.empty_strided")


def _has_known_shape(node: fx.Node, gm: fx.GraphModule) -> bool:
    """Whether it is a dense tensor, and its sizes are numbers or made of the graph's inputs."""
    value = tensor_of(node)
    if value is None or type(value) is not adapter.FakeTensor or not is_dense(value):
        return False
    given = {adapter.expression(size.meta["val"]) for size in adapter.size_symbols(gm)}
    symbols = {symbol for size in symbolic_shape(value) if not isinstance(size, int) for symbol in size.free_symbols}
    return symbols <= given


def _empty(value: Tensor) -> Tensor:
    """A tensor of this shape, with the strides that results take over; one number if these are the usual ones."""
    if memory_order(value) == tuple(range(value.dim())):
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _replace(node: fx.Node, operand: fx.Node, empty: fx.Node) -> None:
    """Replaces an operand where its shape alone is read; it may be read as well at another place."""
    shapes = {place for place, _ in operands(node) if table_use(node, place) is Use.SHAPE}
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    node.args = tuple(empty if at in shapes and arg is operand else arg for at, arg in enumerate(node.args))
    node.kwargs = {
        name: empty if names.index(name) in shapes and arg is operand else arg for name, arg in node.kwargs.items()
    }
