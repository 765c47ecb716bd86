"""What does backward read, and what does each value need?

Every forward value of the joint graph gets a class by following it to backward along the operators that backward
could run again: a value is as delicate as the strictest ``Use`` on the way. What holds of the values alone is found
first (``facts.py``), then which decisions can come out of a code (``decisions.py``), then how backward reads each value
(``uses.py``); here one record is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.decisions import clamps_of, embeddings, predicates_by_operand, rectified
from fxapprox.analysis.facts import Facts
from fxapprox.analysis.intervals import span_of
from fxapprox.analysis.normalization import moments_of
from fxapprox.analysis.reads import Asked, asked_by_backward, is_softmax_output, reaches, reads_of
from fxapprox.analysis.unevenness import uneven_of
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import is_known, is_random, is_view, op_name, operator_of
from fxapprox.ir.records import CLASS_OF_USE, Activation, Affine, Clamp, Class, Operand, Reach, Use
from fxapprox.ir.source import module_path, source_line
from fxapprox.ir.tensors import element_of, has_gaps, is_dense, is_float, storage_of, symbolic_shape, tensor_of

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128)


def classify(joint: Joint, *, min_bytes: int) -> tuple[Activation, ...]:
    """Describes every forward value of a joint graph.

    Requires: a prepared joint graph (dead code removed, common subexpressions merged).
    Ensures: one Activation per forward node, in graph order; an unknown operator makes its operands sensitive.
    Changes numerics: no.
    """
    facts = Facts.of(joint)
    clamps = clamps_of(joint, facts)
    affines = embeddings(joint, facts, clamps)
    carried = {node: z for node in affines if (z := rectified(node)) is not None}
    carried |= {node: node.all_input_nodes[0] for node in clamps}
    reads = reads_of(joint, facts)
    asked = asked_by_backward(joint, facts, reads, carried)
    reach = reaches(joint, facts)
    predicates = predicates_by_operand(joint, facts)
    uneven = uneven_of(joint, facts, reads)
    return tuple(
        _describe(
            node, facts, asked[node], reads.get(node, ()),
            reach=reach.get(node), predicates=predicates.get(node, ()), embedded=affines.get(node),
            clamp=clamps.get(node), uneven=uneven.get(node, ""), min_bytes=min_bytes,
        )
        for node in facts.ops
    )  # fmt: skip


def _describe(
    node: fx.Node,
    facts: Facts,
    asked: Asked,
    reads: Sequence[tuple[fx.Node, Use]],
    *,
    reach: Reach | None,
    predicates: Sequence[str],
    embedded: Affine | None,
    clamp: Clamp | None,
    uneven: str,
    min_bytes: int,
) -> Activation:
    value = tensor_of(node)
    kind, reason = _class_of(node, value, asked, facts)
    size = facts.sizes[node] * value.element_size() if value is not None else 0
    pinned = _pinned(node, facts)
    rounded = _pinned_if_approximate(node, facts)
    approximable = (
        kind in (Class.LINEAR, Class.SMOOTH, Class.ATTENTION, Class.SOFTMAX)
        and (element := element_of(node)) is not None and element.dtype in FLOATS
        and node in facts.depends and node not in facts.free
    )  # fmt: skip
    base = storage_of(node)
    return Activation(
        name=node.name,
        op=facts.ops[node],
        shape=tuple(adapter.hint(s) for s in value.shape) if value is not None else (),
        sizes=symbolic_shape(value) if value is not None else (),
        dtype=value.dtype if value is not None else None,
        device=str(value.device) if value is not None else "",
        nbytes=size,
        kind=kind,
        reach=reach,
        reason=reason,
        predicates=tuple(predicates),
        module=module_path(node),
        source=source_line(node),
        demand=asked.demand,
        operands=tuple(Operand(source.name, use) for source, use in reads),
        recomputable=not pinned and not rounded,
        rerunnable=not pinned,
        unrounded=operator_of(node).unrounded and not any(source in facts.changed for source in node.all_input_nodes),
        pinned=pinned or rounded,
        storable=_is_storable(node, base, facts),
        reshaped=_shows_all(node, base, facts),
        inside=_is_left_to_backward(node, facts),
        entering=node in facts.entering,
        partial=value is not None and (has_gaps(value) if base is node else is_view(node)),
        free=node in facts.free,
        approximable=approximable,
        kept=_kept(value, size, min_bytes, uneven=uneven) if value is not None else "",
        span=span_of(node),
        nonnegative=facts.bounds[node][0] >= 0,
        weights=is_softmax_output(node, facts),
        for_softmax=asked.weights,
        saturates=all(map(math.isfinite, facts.bounds[node])),
        embedded=embedded,
        clamp=clamp,
        ceiling=facts.ceilings.get(node),
        moments=moments_of(node) if approximable else None,
    )


def _class_of(node: fx.Node, value: torch.Tensor | None, asked: Asked, facts: Facts) -> tuple[Class, str]:
    if node in facts.free:
        what = (
            "an input"
            if node.op == "placeholder"
            else "a constant"
            if node.op == "get_attr"
            else "an output or a view of an input"
        )
        return Class.FREE, f"{what}: alive during backward anyway"
    if value is None and (is_view(node) or node in facts.checkpointed) and asked.every is not None:
        return CLASS_OF_USE[asked.every], asked.why  # a tuple: never stored, but made of a value that may be
    if value is None:
        return Class.SENSITIVE, "not a tensor"
    if not is_float(value.dtype):
        return Class.DISCRETE, "integers and masks are kept without loss"
    if node in facts.gradients:
        return Class.SENSITIVE, "a gradient, computed in forward for a loss's gradient of 1"
    if node in facts.decisions:
        return Class.DISCRETE, "takes a decision"
    if node not in facts.depends:
        return Class.SENSITIVE, "depends on no parameter and no float input: kept, never quantized"
    if node in facts.statistics:
        return Class.STATISTIC, "small next to the activations it was computed from"
    if asked.every is None:
        return Class.SENSITIVE, "backward does not read it"
    return CLASS_OF_USE[asked.every], asked.why


def _pinned(node: fx.Node, facts: Facts) -> str:
    """Why backward may not run this operator again, on exact operands either; "" if it may."""
    if node.op != "call_function":
        return "an input"
    if node in facts.saved and not _is_light(node, facts):
        return "marked to be saved"
    if adapter.is_symbolic_scalar(node):
        return "a size"
    if is_random(node):
        return "random"
    if node in facts.checkpointed:
        return ""
    if any(source in facts.changed for source in node.all_input_nodes):
        return "reads an input that forward changes in place"
    name = facts.ops[node]
    if not is_known(node) and node not in facts.pointwise:
        return f"unknown operator {name}"
    if node not in facts.again and node not in facts.pointwise:
        return f"{name} is expensive"
    if node in facts.decisions and not all(source in facts.checkpointed for source in node.all_input_nodes):
        return "a decision is kept, not taken again"
    # of a residual stream every sum would be recomputed from all before it
    if _joins_branches(node, facts) and any(len(facts.roots[source]) > 1 for source in node.all_input_nodes):
        return "joins many branches"
    return ""


def _pinned_if_approximate(node: fx.Node, facts: Facts) -> str:
    """Why backward may not run this operator again on approximate operands; "" if it may."""
    if node in facts.checkpointed:
        return ""
    if node in facts.pointwise:
        return f"unknown operator {facts.ops[node]}"
    return "joins two branches" if _joins_branches(node, facts) else ""


def _joins_branches(node: fx.Node, facts: Facts) -> bool:
    roots = facts.roots[node]
    sums = facts.ops[node] in ("aten.add", "aten.sub") and len(roots) > 1 and node not in facts.wide
    return sums and all(roots != facts.roots[source] for source in node.all_input_nodes)


def _is_light(node: fx.Node, facts: Facts) -> bool:
    """Whether a value of a checkpointed region is had from what is stored without running that region again."""
    return adapter.region_of(node) is not None and not any(source in facts.heavy for source in node.all_input_nodes)


def _is_storable(node: fx.Node, base: fx.Node, facts: Facts) -> bool:
    """Whether the value can be saved, and it is not a view that shows all of its base: that one is stored instead.

    Two saved tensors must never share memory: Inductor's backward writes over a saved tensor after its last use.
    """
    if node not in facts.sizes:
        return adapter.is_symbolic_scalar(node) or adapter.is_opaque(node)
    return not _shows_all(node, base, facts)


def _shows_all(node: fx.Node, base: fx.Node, facts: Facts) -> bool:
    whole = node in facts.sizes and facts.sizes[node] == facts.sizes.get(base)
    return whole and base is not node and facts.ops[node] != "aten.as_strided"


def _is_left_to_backward(node: fx.Node, facts: Facts) -> bool:
    """Whether the user's checkpointing asks not to store the value.

    Random numbers would not come again: what they decide (a dropout mask) is stored all the same, as bits. Decisions,
    statistics and what an operator gives beside its result (logsumexp) may be stored: they are small, and where
    something before them is approximate they would not come again either. So may sizes, which are numbers.
    """
    small = node in facts.decisions or node in facts.statistics or _is_side_result(node)
    small = small or adapter.is_symbolic_scalar(node)
    return node in facts.checkpointed and not small and not any(is_random(n) for n in (node, *node.all_input_nodes))


def _is_side_result(node: fx.Node) -> bool:
    """Whether the node is one of an operator's results, but not the first."""
    return op_name(node) == "getitem" and not is_view(node.args[0]) and node.args[1] != 0  # type: ignore[arg-type]


def _kept(value: torch.Tensor, size: int, min_bytes: int, *, uneven: str) -> str:
    """Why a tensor is stored as it is, if it is stored; "" if it can be encoded."""
    if size < max(min_bytes, 1):
        return f"smaller than min_bytes={min_bytes}"
    if type(value) is not adapter.FakeTensor or not is_dense(value):
        return "its elements do not fill their memory"
    return uneven
