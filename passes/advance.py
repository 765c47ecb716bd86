"""Computes the gradients of a wide product in forward, where its result is alive.

The logits of a language model are many times larger than the hidden state and the weight's gradient. Backward reads
them for the gradients of these two only: storing them costs memory, and computing them again is one more product. But
backward is linear in the gradient that comes in, and that of a loss is one number. So forward computes these gradients
for the number 1, while the logits are alive, and stores them in place of the logits; backward multiplies them by the
number that came. Kernels that are written by hand do so for a cross entropy (Hsu et al. 2024, "Liger Kernel"); here it
is a property of the joint graph, whatever the loss.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.facts import WIDE
from fxapprox.analysis.intervals import interval
from fxapprox.ir.arguments import argument, operands
from fxapprox.ir.joint import Joint, erase_unused
from fxapprox.ir.operators import is_view, op_name, operator_of
from fxapprox.ir.tensors import nbytes, tensor_of, value_of

# A scaler of float16's gradients makes them large because they vanish otherwise; here they would be computed unscaled.
WIDE_RANGE = (torch.float32, torch.float64, torch.bfloat16)


def advance(joint: Joint) -> Joint:
    """Moves the gradients that only wide values and one scalar tangent make from backward to forward.

    Requires: a prepared joint graph.
    Ensures: the graph given is untouched; the same inputs, outputs and forward values, under their names. What is moved
        takes an eighth, at most, of the widest value that backward need not read any more.
    Changes numerics: not where the tangent is a power of two (of a loss it is 1); else a gradient is rounded once more.

    Returns: the new joint graph, its moved gradients in ``Joint.gradients``; the one given, if there are none.
    """
    for name in [node.name for node in joint.gm.graph.find_nodes(op="placeholder") if _is_scalar_gradient(node)]:
        (tangent,) = (node for node in joint.gm.graph.find_nodes(op="placeholder") if node.name == name)
        if moved := _moved(joint, tangent):
            joint = _rewritten(joint, tangent, moved)
    return joint


def returned_gradients(joint: Joint) -> frozenset[str]:
    """Names of those of ``joint.gradients`` that backward only returns: scaled, cast, reshaped, or with more added."""
    moved = (node for node in joint.gm.graph.nodes if node.name in joint.gradients)
    return frozenset(node.name for node in moved if _is_returned(joint, node))


def _is_returned(joint: Joint, node: fx.Node) -> bool:
    readers = [user for user in node.users if user in joint.backward]
    while readers:
        reader = readers.pop()
        if op_name(reader) not in ("aten.mul", "aten.add", "prims.convert_element_type") and not is_view(reader):
            return False
        readers += (user for user in reader.users if user.op != "output")
    return any(user in joint.backward for user in node.users)


def _is_scalar_gradient(node: fx.Node) -> bool:
    value = tensor_of(node)
    return adapter.is_tangent(node) and value is not None and value.dim() == 0 and value.dtype in WIDE_RANGE


def _moved(joint: Joint, tangent: fx.Node) -> tuple[fx.Node, ...]:
    """The operators that become forward's, in order; none if there is no wide product, or more would be stored."""
    linear = _linear_in(joint, tangent)
    ends = [node for node in linear if is_product(node) and WIDE * nbytes(value_of(node)) <= _read(node, linear)]
    if not ends:
        return ()
    widest = max(_read(end, linear) for end in ends)
    moved = {end for end in ends if WIDE * _read(end, linear) > widest}  # no gradients of small layers beside it
    for node in reversed(linear):
        if any(user in moved for user in node.users):
            moved.add(node)
    for node in linear:  # what is no larger than what it reads: the weight's gradient, the bias's
        own = [source for source in node.all_input_nodes if source in joint.backward]
        if all(source in moved for source in own) and nbytes(value_of(node)) <= max(nbytes(value_of(s)) for s in own):
            moved.add(node)
    kept = sum(nbytes(value_of(node)) for node in moved if any(user not in moved for user in node.users))
    if WIDE * kept > widest:
        return ()
    if any(adapter.must_recompute(source) for node in moved for source in node.all_input_nodes):
        return ()  # the user would rather have them computed again
    return tuple(n for n in linear if n in moved)


def _linear_in(joint: Joint, tangent: fx.Node) -> list[fx.Node]:
    """What is linear in the tangent and in no other, up to products."""
    found: list[fx.Node] = []
    read = {tangent}
    for node in joint.gm.graph.nodes:
        value = tensor_of(node)
        own = [source for source in node.all_input_nodes if source in joint.backward]
        if node.op != "call_function" or not own or not read.issuperset(own) or adapter.must_be_in_backward(node):
            continue
        if value is None or value.dtype not in WIDE_RANGE or not _is_linear(node, read):
            continue
        if value.dim() == 0 and value.dtype != value_of(tangent).dtype:
            continue  # the tangent would widen it
        found.append(node)
        if not is_product(node):
            read.add(node)
    return found


def is_product(node: fx.Node) -> bool:
    """Whether two matrices are multiplied, and nothing added."""
    return operator_of(node).factors == (0, 1)


def _is_linear(node: fx.Node, gradients: Collection[fx.Node]) -> bool:
    """Whether the operator is linear in those operands that are gradients."""
    positions = [position for position, operand in operands(node) if operand in gradients]
    if is_product(node) or op_name(node) == "aten.mul":
        return len(positions) == 1
    if argument(node, "rounding_mode") or argument(node, "reduce"):
        return False
    together = operator_of(node).linear_in
    zero = all(argument(node, at) in gradients or _is_zero(argument(node, at)) for at in together)
    return zero and all(at in together for at in positions)


def _is_zero(argument: object) -> bool:
    return interval(argument, {}) == (0, 0) if isinstance(argument, fx.Node) else argument == 0


def _read(product: fx.Node, gradients: Collection[fx.Node]) -> int:
    """Bytes of the gradient that a product reads."""
    return max((nbytes(value_of(source)) for source in product.all_input_nodes if source in gradients), default=0)


def _rewritten(joint: Joint, tangent: fx.Node, moved: Collection[fx.Node]) -> Joint:
    graph, same = adapter.copy_graph(joint.gm.graph)
    value = value_of(tangent)
    like = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
    with graph.inserting_before(same[next(iter(moved))]):
        one = graph.call_function(torch.ops.aten.full.default, ([], 1), like)
    one.meta["val"] = value
    ahead = {tangent: one}
    for node in moved:
        with graph.inserting_before(same[node]):
            ahead[node] = adapter.copy_node(node, graph, lambda n: ahead[n] if n in ahead else same[n])
        adapter.make_forward(ahead[node])
        adapter.rename(ahead[node], f"{node.name}_ahead")
    for node in moved:
        readers = [user for user in node.users if user not in moved]
        if readers:
            with graph.inserting_before(same[node]):
                scaled = graph.call_function(torch.ops.aten.mul.Tensor, (ahead[node], same[tangent]))
            scaled.meta = {**same[node].meta, "val": value_of(ahead[node]) * value}
            for reader in readers:
                same[reader].replace_input_with(same[node], scaled)
    erase_unused(graph)
    gm = fx.GraphModule(joint.gm, graph)
    gm.meta = joint.gm.meta.copy()
    names = frozenset(node.name for source, node in ahead.items() if source is not tangent)
    return replace(joint, gm=gm, gradients=joint.gradients | names)
