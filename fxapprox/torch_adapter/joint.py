# pyright: reportPrivateImportUsage=false
"""The joint graph: what torch says of its nodes, and its own ways to split it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from torch import fx
from torch._functorch import partitioners
from torch._functorch._aot_autograd.descriptors import PlainAOTOutput
from torch.utils import _pytree as pytree

from fxapprox.torch_adapter.symbols import is_symbolic_scalar

Half = Literal["forward", "backward"]
Partition = tuple[fx.GraphModule, fx.GraphModule]
Partitioner = Callable[..., Partition]


def prepare_joint(gm: fx.GraphModule) -> None:
    """What torch's own partitioner does to a joint graph before it chooses what to save. Mutates ``gm``."""
    gm.graph.eliminate_dead_code()
    gm.recompile()
    if functorch_config.cse:
        gm.graph = partitioners.fx_graph_cse(gm.graph)
    partitioners.force_save_collectives(gm)
    partitioners.force_save_effectful_ops(gm)
    partitioners.force_save_bw_mutation_src(gm)
    if partitioners.has_recomputable_ops(gm):
        partitioners.cleanup_recompute_tags(gm, is_default_partition=False)


def flat_outputs(output: fx.Node) -> list[Any]:
    """What an output node returns, flattened; None stays."""
    return pytree.tree_leaves(output.args[0], is_leaf=lambda x: x is None)


def output_positions(graph: fx.Graph) -> list[int | None]:
    """For what a graph of AOTAutograd's returns, in order: which output of the Dynamo graph it is; None: it is none."""
    (output,) = graph.find_nodes(op="output")
    values = flat_outputs(output)
    told = output.meta.get("desc") or [None] * len(values)
    return [about.idx if isinstance(about, PlainAOTOutput) else None for about in told]


def is_tangent(node: fx.Node) -> bool:
    """Whether a placeholder of the joint graph is an incoming gradient (or a seed that only backward has)."""
    return node.op == "placeholder" and ("tangents" in str(node.target) or partitioners._is_bwd_seed_offset(node))


def must_be_in_backward(node: fx.Node) -> bool:
    """Whether torch has pinned the node to the backward graph (mutations of backward)."""
    return partitioners._must_be_in_backward(node)


def traced_half(node: fx.Node) -> Half | None:
    """The half of the joint graph that the node was traced in, copies included; None: a pass has made it."""
    tag = node.meta.get("partitioner_tag")
    return "forward" if tag == "is_forward" else "backward" if tag else None


def make_forward(node: fx.Node) -> None:
    """Tells torch that a node which was traced in backward belongs to forward."""
    node.meta["partitioner_tag"] = "is_forward"


def must_recompute(node: fx.Node) -> bool:
    """Whether the user's ``torch.utils.checkpoint`` region, or its policy, wants the value computed again."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return partitioners.must_recompute(node)


def must_save(node: fx.Node) -> bool:
    """Whether torch wants the value saved, never recomputed (collectives, effects, selective checkpoints)."""
    return _policy(node) == "MUST_SAVE"


def wants_saved(node: fx.Node) -> bool:
    """As :func:`must_save`; or a selective checkpoint would rather have it saved."""
    return _policy(node) in ("MUST_SAVE", "PREFER_SAVE")


def _policy(node: fx.Node) -> str:
    policy = node.meta.get("recompute")
    return "" if policy is None else policy.name


def region_of(node: fx.Node) -> int | None:
    """The number of the user's ``torch.utils.checkpoint`` region that the node was traced in; None: in none."""
    return node.meta.get("ac_graph_id")


def is_operator(target: object) -> bool:
    """Whether a node's target is an operator of the dispatcher."""
    return isinstance(target, torch._ops.OpOverload)


def mutates(node: fx.Node) -> bool:
    """Whether the node's operator writes to one of its operands; unknown callables may."""
    if not is_operator(node.target):
        return node.target is not operator.getitem
    return node.target._schema.is_mutable  # type: ignore[union-attr]


def is_alias(node: fx.Node) -> bool:
    """Whether the result of a node's operator lies in the memory of its first operand, by its schema."""
    if (
        node.op != "call_function"
        or not is_operator(node.target)
        or not node.args
        or not isinstance(node.args[0], fx.Node)
    ):
        return False
    schema = node.target._schema  # type: ignore[union-attr]
    given, made = (each[0].alias_info if each else None for each in (schema.arguments, schema.returns))
    return given is not None and made is not None and not given.is_write


def changed_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The inputs that a forward graph, or what runs it, writes to: buffers, and the user's tensors."""
    inputs = graph.find_nodes(op="placeholder")
    changed = {
        node.args[0] for node in graph.nodes
        if node.op == "call_function" and is_operator(node.target) and mutates(node) and node.args
    }  # fmt: skip
    (output,) = graph.find_nodes(op="output")
    told = [getattr(about, "mutated_input", None) for about in output.meta.get("desc") or ()]
    return {node for node in inputs if node in changed or (told and node.meta.get("desc") in told)}


def is_opaque(node: fx.Node) -> bool:
    """Whether the node is a script object or another value that is not a tensor and travels as it is."""
    check = getattr(partitioners, "is_opaque_node", None)
    return bool(check and check(node))


def default_saved(gm: fx.GraphModule, *, num_fwd_outputs: int, static_inputs: Sequence[int] | None) -> list[fx.Node]:
    """The values torch's own minimum cut would save from this (prepared) joint graph."""
    info = partitioners.classify_nodes(gm, list(static_inputs or ()), num_fwd_outputs)
    if not info.required_bw_nodes:
        return []
    for node in reversed(gm.graph.nodes):
        if node.op == "output":
            node.dist_from_bw = int(1e9)
        elif not info.is_required_fw(node):
            node.dist_from_bw = 0
        else:
            node.dist_from_bw = min((user.dist_from_bw + 1 for user in node.users), default=int(1e9))
    return partitioners.choose_saved_values_set(gm.graph, info, memory_budget=1)


def split(
    gm: fx.GraphModule, saved: Sequence[fx.Node], *, num_fwd_outputs: int, static_inputs: Sequence[int] | None
) -> Partition:
    """Forward and backward graphs that save exactly ``saved`` and recompute the rest.

    The forward returns the user's outputs, then the saved tensors, opaque objects and symbolic sizes; the backward
    takes symbolic sizes, then the saved tensors, then the tangents (AOTAutograd's convention).
    """
    info = partitioners.classify_nodes(gm, list(static_inputs or ()), num_fwd_outputs)
    scalars = [n for n in saved if is_symbolic_scalar(n) and not _is_only_asserted(n)]
    opaque = [n for n in saved if is_opaque(n)]
    tensors = [n for n in saved if not is_symbolic_scalar(n) and not is_opaque(n)]
    opaque_nodes: dict[str, Any] = {"saved_opaque_nodes": opaque} if opaque else {}  # since torch 2.12
    forward, backward = partitioners._extract_fwd_bwd_modules(
        gm,
        tensors,
        saved_sym_nodes=scalars,
        **opaque_nodes,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_nodes=info.static_lifetime_input_nodes,
    )
    forward.graph.eliminate_dead_code(_has_effect)
    # torch leaves copies of forward's effects in backward, collectives among them, wherever their operands are at hand
    backward.graph.eliminate_dead_code(lambda node: _has_effect(node) and not _is_copy(node))
    unread = {node.name for node in backward.graph.find_nodes(op="placeholder") if not node.users}
    if any(node.name in unread for node in tensors):  # nothing else read them
        left = [node for node in saved if node.name not in unread]
        return split(gm, left, num_fwd_outputs=num_fwd_outputs, static_inputs=static_inputs)
    return forward, backward


def _is_only_asserted(node: fx.Node) -> bool:
    """Whether a condition is read by assertions alone; torch before 2.13 saves those like others."""
    check = getattr(partitioners, "_is_assert_only_symbool", None)
    return bool(check and check(node))


def _has_effect(node: fx.Node) -> bool:
    """Whether the node has to stay though nobody reads it; torch keeps what is random, unless it is compiling."""
    return node.is_impure(impure_random=inductor_config.fallback_random)


def _is_copy(node: fx.Node) -> bool:
    """Whether an operator in a backward graph is one of forward's."""
    return node.op == "call_function" and traced_half(node) == "forward"


def finish_split(forward: fx.GraphModule, backward: fx.GraphModule) -> Partition:
    """Orders the two graphs as torch's own partitioner leaves them."""
    backward = partitioners.reordering_to_mimic_autograd_engine(backward)
    forward, backward = partitioners.raise_getitems(forward), partitioners.raise_getitems(backward)
    forward = partitioners.thread_graphsafe_rng_from_hops(forward, is_backward=False)
    backward = partitioners.thread_graphsafe_rng_from_hops(backward, is_backward=True)
    return forward, backward


def exact_partition(gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any) -> Partition:
    """torch's own partition, without its budget: nothing is encoded."""
    with functorch_config.patch(activation_memory_budget=1):
        return partitioners.min_cut_rematerialization_partition(gm, joint_inputs, compiler="inductor", **kwargs)


def recomputation_budget(gm: fx.GraphModule) -> float:
    """torch's own budget, as configured or as it was set around the model; 1: it asks for nothing."""
    annotation = getattr(partitioners, "_get_memory_budget_annotation", lambda node: None)  # since torch 2.13
    marks = (mark for node in gm.graph.nodes for mark in (node.meta.get("memory_budget"), annotation(node)))
    return next((mark for mark in marks if isinstance(mark, float)), functorch_config.activation_memory_budget)
