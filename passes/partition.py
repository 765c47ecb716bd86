"""Splits the joint graph into forward and backward along a plan, with nothing encoded yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import InvalidPlan, UnsupportedGraph
from fxapprox.ir.arguments import argument
from fxapprox.ir.inline import Inliner
from fxapprox.ir.joint import Joint
from fxapprox.ir.records import Clamp, Plan
from fxapprox.ir.source import source_line
from fxapprox.torch_adapter import Partition


def partition(joint: Joint, plan: Plan) -> Partition:
    """Forward and backward graphs that save exactly the plan's values, each as it is.

    Requires: a plan made for this joint graph.
    Ensures: backward reads the plan's values and free ones, and recomputes the rest, clamps of approximate operands by
        forward's decisions; AOTAutograd's order of inputs and outputs.
    Changes numerics: no.

    Raises:
        InvalidPlan: the plan names a value that the graph does not have.
        UnsupportedGraph: a clamp's decision does not reach backward.
    """
    nodes = {node.name: node for node in joint.gm.graph.nodes}
    missing = [name for name in plan.saved_names if name not in nodes]
    if missing:
        raise InvalidPlan(f"the plan stores {missing[0]!r}, which the joint graph does not have")
    saved = [nodes[name] for name in plan.saved_names]
    alive = joint.alive.difference(saved)
    free = [n for n in joint.forward_values if n in alive and n.op != "get_attr"]
    # torch drops a saved value that backward turns out not to read; what decides a clamp is read only from here on
    deciding = [nodes[name] for name in dict.fromkeys(clamp.predicate for _, clamp in plan.clamps)]
    with _returned_by_backward(joint.gm, deciding):
        forward, backward = adapter.split(
            joint.gm, [*free, *saved],
            num_fwd_outputs=joint.num_fwd_outputs, static_inputs=joint.static_inputs,
        )  # fmt: skip
    _drop_outputs(backward, len(deciding))
    _hoist(forward, joint.num_fwd_outputs)
    _decide_clamps(backward, plan)
    _bound_exponentials(backward, plan)
    return forward, backward


@contextmanager
def _returned_by_backward(gm: fx.GraphModule, values: Sequence[fx.Node]) -> Iterator[None]:
    """Has the joint graph return these values behind its gradients."""
    output = next(iter(gm.graph.find_nodes(op="output")))
    args, meta = output.args, output.meta
    output.args = ((*args[0], *values),)  # type: ignore[misc]
    if "desc" in meta:
        output.meta = {**meta, "desc": [*meta["desc"], *(None for _ in values)]}
    try:
        yield
    finally:
        output.args, output.meta = args, meta


def _drop_outputs(graph: fx.GraphModule, count: int) -> None:
    """Takes the last outputs away again."""
    output = next(iter(graph.graph.find_nodes(op="output")))
    left = len(output.args[0]) - count  # type: ignore[arg-type]
    output.args = (tuple(output.args[0])[:left],)  # type: ignore[arg-type]
    for key in ("desc", "output_stack_traces"):
        if key in output.meta:
            output.meta[key] = list(output.meta[key])[:left]


def _decide_clamps(backward: fx.GraphModule, plan: Plan) -> None:
    """Lets backward's clamps of approximate operands take forward's decision: where(predicate, operand, limit)."""
    if not plan.clamps:
        return
    nodes = {node.name: node for node in backward.graph.nodes}
    writer = Inliner(backward)
    for name, clamp in plan.clamps:
        node, predicate = nodes.get(name), nodes.get(clamp.predicate)
        if node is None:
            continue  # backward turned out not to read it
        if predicate is None:
            why = f"it is clamped by {clamp.predicate!r}, which backward does not have"
            raise UnsupportedGraph("partition", why, node=name, source=source_line(node), values=(clamp.operand,))
        _move_before(node, predicate)
        (chosen,) = writer.inline(choose(clamp), [predicate, argument(node, 0)], before=node, key=clamp)
        adapter.take_place(chosen, node)


def _move_before(node: fx.Node, value: fx.Node) -> None:
    """Puts what a value is computed by before a node that it does not depend on."""
    if value.op == "placeholder" or value < node:
        return
    for source in value.all_input_nodes:
        _move_before(node, source)
    node.prepend(value)


def _bound_exponentials(backward: fx.GraphModule, plan: Plan) -> None:
    """Keeps approximate operands of exponentials where the exact ones are: elsewhere the result is not read."""
    nodes = {node.name: node for node in backward.graph.nodes} if plan.ceilings else {}
    writer = Inliner(backward)
    for name, ceiling in plan.ceilings:
        if (node := nodes.get(name)) is None:
            continue  # backward turned out not to read it
        operand = argument(node, 0)
        (bounded,) = writer.inline(_at_most(ceiling), [operand], before=node, key=("at most", ceiling))
        node.replace_input_with(operand, bounded)


def _at_most(ceiling: float) -> Callable[[Tensor], tuple[Tensor]]:
    return lambda x: (x.clamp_max(ceiling),)


def choose(clamp: Clamp) -> Callable[[Tensor, Tensor], tuple[Tensor]]:
    """The clamp of an approximate operand by forward's decision: a function of (predicate, operand)."""

    def run(predicate: Tensor, x: Tensor) -> tuple[Tensor]:
        if clamp.inside:
            return (torch.where(predicate, x, clamp.limit),)
        return (torch.where(predicate, clamp.limit, x),)

    return run


def _hoist(forward: fx.GraphModule, num_fwd_outputs: int) -> None:
    """Moves what only backward asks for (masks, mostly) from the end of forward to where its operands are made.

    There it can be encoded before the activation dies, and Inductor gives it the layout of its surroundings: nodes
    after the last convolution do not take part in channels-last memory.
    """
    output = next(iter(forward.graph.find_nodes(op="output")))
    needed: set[fx.Node] = set()
    stack = [n for n in output.args[0][:num_fwd_outputs] if isinstance(n, fx.Node)]  # type: ignore[index]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    *_, start = forward.graph.find_nodes(op="placeholder")  # what needs a gradient is an input
    position = {node: i for i, node in enumerate(forward.graph.nodes)}
    anchors: dict[fx.Node, fx.Node] = {node: node for node in position}
    last = dict(anchors)
    for node in list(forward.graph.nodes):
        if node.op != "call_function" or node in needed or node.is_impure():
            continue
        made_by = [anchors[n] for n in node.all_input_nodes if anchors[n].op != "placeholder"]
        anchor = max(made_by, key=position.__getitem__) if made_by else start
        last[anchor].append(node)
        anchors[node], last[anchor] = anchor, node
