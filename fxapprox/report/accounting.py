"""How a report is made from a rewrite: each value's bytes before and after, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import sympy
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import Codec, Exact
from fxapprox.files.plan_file import saved_entries
from fxapprox.ir.crossing import Crossing
from fxapprox.ir.operators import op_name, table_use
from fxapprox.ir.records import Activation, Class, Decision, Stored
from fxapprox.ir.source import module_path
from fxapprox.ir.storage import Fate, Storage
from fxapprox.ir.tensors import is_float, nbytes_expression, storage_of, symbolic_shape, tensor_of
from fxapprox.memory.baseline import baseline_timeline
from fxapprox.memory.held import held_by, saved_by
from fxapprox.memory.timeline import timeline
from fxapprox.passes.advance import returned_gradients
from fxapprox.passes.rewrite import Rewrite
from fxapprox.report.data import largest_first
from fxapprox.report.result import Report
from fxapprox.sizes import Size, evaluate, hints_of


def report_of(result: Rewrite, *, lowering: str = "inductor", names: Sequence[str] = ()) -> Report:
    """The report of one rewrite.

    Args:
        lowering: what runs the graphs.
        names: what the user calls the inputs of the graph that was traced.
    """
    gm = result.joint.gm
    hints = hints_of(adapter.dynamic_sizes(gm))
    nodes = {node.name: node for node in gm.graph.nodes}
    values = {a.name: a for a in result.activations}
    count = result.joint.num_fwd_outputs
    copied = [name for name in result.copied if name not in result.counted and lowering == "inductor"]
    copies = tuple(_copy(nodes[name], name in result.recopied, hints) for name in copied)
    before = held_by((nodes[name] for name in result.baseline if name in nodes), result.counted_for_plain)
    baseline = sympy.sympify(sum(before.values()) + sum(copy.expr_before for copy in copies))
    saved_nodes = saved_by(result.forward, count)
    saved = sympy.sympify(sum(held_by(saved_nodes, result.counted).values()) + sum(copy.expr_after for copy in copies))
    decisions: list[Decision] = []
    left = {n.name: (base.name, size) for n in saved_nodes for base, size in held_by([n], result.counted).items()}
    again = {name: index for index, segment in enumerate(result.segments, 1) for name in segment.recomputed}
    for parts in sorted(result.parts, key=lambda p: not isinstance(p.entry.codec, Exact)):
        entry = parts.entry
        if entry.name not in values or adapter.is_symbolic_scalar(nodes[entry.name]):
            continue
        after = _taken(left, (node.name for node in parts.nodes))
        was = before.pop(storage_of(nodes[entry.name]), 0)
        segment = next((again[node.name] for node in parts.nodes if node.name in again), None)
        how = Storage.stored(entry.codec, segment)
        decisions.append(_decision(values[entry.name], how, was, after, entry, hints))
        for name in entry.predicates:
            was = before.pop(storage_of(nodes[name]), 0)
            decisions.append(_decision(values[name], Storage.carried(entry.name), was, 0, None, hints))
    made = {node.name: node for node in result.forward.graph.nodes}
    boundaries = {name for segment in result.segments for name in segment.boundary}
    for held in (held for segment in result.segments for held in segment.held):
        name = _value_behind(made[held.name], values)
        inside = name != held.name and isinstance(held.codec, Exact)
        how = Storage.carried("") if inside else Storage.stored(held.codec)
        how = replace(how, role="boundary" if held.name in boundaries else "for recomputation")
        was = before.pop(storage_of(nodes[name]), 0)
        decisions.append(_decision(values[name], how, was, _taken(left, held.parts), None, hints))
    for name in dict.fromkeys((*(node.name for node in before), *(base for base, _ in left.values()))):
        if name in values:
            size = before.get(nodes[name], 0)
            after = _taken(left, [each for each, (base, _) in left.items() if base == name])
            fate = Fate.RECOMPUTED if name in result.plan.recomputed else Fate.UNNEEDED
            how = Storage.stored(Exact()) if after else Storage(fate)
            decisions.append(_decision(values[name], how, size, after, None, hints))
    unknown = _unknown_readers(result)
    decisions = [replace(d, unknown=unknown.get(d.value, ())) if d.bytes_after and not d.bits else d for d in decisions]
    returned = returned_gradients(result.joint)
    gradients = tuple(decision for decision in decisions if decision.value in returned)
    alive_when = timeline(
        result.forward, result.backward, num_fwd_outputs=count, lowering=lowering, slices=result.slices
    )
    alive_when = alive_when.named(_saved_values(result))
    used = alive_when.symbols | _free_symbols(
        baseline, saved, *(size for d in (*decisions, *copies) for size in (*d.sizes, d.expr_after))
    )
    return Report(
        evaluate(baseline, hints),
        evaluate(saved, hints),
        tuple(sorted(decisions, key=largest_first)),
        result.fallback,
        result.seconds,
        result.joint.gm,
        result.forward,
        result.backward,
        copies=copies,
        gradients=gradients,
        baseline_expr=baseline,
        saved_expr=saved,
        sizes=tuple(symbol for symbol in adapter.dynamic_sizes(gm) if symbol.name in used),
        conditions=tuple(c for c in adapter.size_conditions(gm) if _free_symbols(c) <= used),
        entries=saved_entries(result.plan, result.activations),
        timeline=alive_when,
        baseline_timeline=cache(lambda: baseline_timeline(result.traced, result.baseline, lowering)),
        setting=result.setting,
        segments=result.segments,
        settings=cache(result.pareto),
        outputs=count,
        activations=result.activations,
        recomputed=result.plan.recomputed,
        spliced=result.spliced,
        slices=result.slices,
        inputs=_named_inputs(gm, names),
    )


def _named_inputs(gm: fx.GraphModule, names: Sequence[str]) -> dict[str, str]:
    placed = ((node.name, adapter.input_position(node)) for node in gm.graph.find_nodes(op="placeholder"))
    return {node: names[at] for node, at in placed if at is not None and at < len(names) and names[at]}


def _unknown_readers(result: Rewrite) -> dict[str, tuple[str, ...]]:
    """{a float of forward: the operators of backward that read it and that nobody has described}."""
    found: dict[str, tuple[str, ...]] = {}
    for node in result.joint.gm.graph.nodes:
        runs = node in result.joint.backward or node.name in result.plan.recomputed
        if node.op != "call_function" or not runs or table_use(node, 0) is not None:
            continue
        for source in node.all_input_nodes:
            value = tensor_of(source)
            if source not in result.joint.backward and value is not None and is_float(value.dtype):
                found[source.name] = tuple(dict.fromkeys((*found.get(source.name, ()), op_name(node))))
    return found


def _free_symbols(*sizes: Size | sympy.Basic) -> set[str]:
    return {symbol.name for size in sizes if not isinstance(size, int) for symbol in size.free_symbols}  # type: ignore[attr-defined]


def _decision(
    value: Activation, how: Storage, before: Size, after: Size, entry: Stored | None, hints: Mapping[str, int]
) -> Decision:
    return Decision(
        value=value.name,
        shape=value.shape,
        dtype=str(value.dtype).removeprefix("torch."),
        kind=entry.kind if entry is not None else value.kind,
        reach=value.reach,
        how=how,
        bits=entry.codec.bits if entry is not None and not entry.codec.lossless else None,
        bytes_before=evaluate(before, hints),
        bytes_after=evaluate(after, hints),
        predicates=entry.predicates if entry is not None else (),
        module=value.module,
        source=value.source,
        reason=entry.reason if entry is not None else value.reason,
        sizes=value.sizes,
        expr_before=sympy.sympify(before),
        expr_after=sympy.sympify(after),
    )


def _copy(node: fx.Node, kept: bool, hints: Mapping[str, int]) -> Decision:
    """What becomes of the channels-last copy of an input."""
    value = tensor_of(node)
    assert value is not None
    size = nbytes_expression(value)
    shape = symbolic_shape(value)
    return Decision(
        value=node.name,
        shape=tuple(evaluate(s, hints) for s in shape),
        dtype=str(value.dtype).removeprefix("torch."),
        kind=Class.FREE,
        reach=None,
        how=Storage(Fate.COPIED if kept else Fate.NOT_COPIED),
        bits=None,
        bytes_before=evaluate(size, hints),
        bytes_after=evaluate(size, hints) if kept else 0,
        predicates=(),
        module=module_path(next(iter(node.users))),
        source="",
        reason="read by convolutions, and saved; its layout is made again in backward" if not kept else
        "read by convolutions, and saved; its sizes are symbolic",
        sizes=shape,
        expr_before=sympy.sympify(size),
        expr_after=sympy.sympify(size) if kept else sympy.Integer(0),
    )  # fmt: skip


def _saved_values(result: Rewrite) -> dict[str, tuple[str, Codec | None]]:
    """{an input of backward: (the value it carries, in which code)}; nothing for a graph that was left alone."""
    if result.fallback or not result.parts:
        return {}
    coded = {node: (s.value, s.codec) for s in result.spliced for node in s.encode}
    crossing = Crossing(result.forward, result.backward, result.joint.num_fwd_outputs)
    return {slot.name: coded.get(value.name, (value.name, None)) for value, slot in crossing.inputs.items()}


def _value_behind(node: fx.Node, values: Mapping[str, Activation]) -> str:
    """The nearest of these values that a node in forward is computed from: that for which a code stands."""
    found = [node]
    for node in found:
        if node.name in values:
            return node.name
        found += node.all_input_nodes
    raise AssertionError(f"{found[0].name} is computed from no value of the joint graph")


def _taken(left: dict[str, tuple[str, Size]], names: Iterable[str]) -> Size:
    """Bytes of the memory in which these saved values lie; it is not counted again."""
    bases = dict(left[name] for name in names if name in left)
    for name in [name for name, (base, _) in left.items() if base in bases]:
        del left[name]
    return sum(bases.values())
