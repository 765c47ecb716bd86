"""The report of one graph: what backward reads, what is stored for it, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import sympy
import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.activation import Activation, Class, Decision, Segment, Spliced, Stored
from fxapprox.codecs import Exact
from fxapprox.crossing import Crossing
from fxapprox.errors import FxApproxError
from fxapprox.graph import is_float, module_path, nbytes_expression, storage_of, symbolic_shape, tensor_of
from fxapprox.held import held_by, saved_by
from fxapprox.liveness import CODED, Timeline, joined, timeline
from fxapprox.operators import op_name, table_use
from fxapprox.options import Options
from fxapprox.pareto import Point, is_lower, joined_points
from fxapprox.passes.advance import returned_gradients
from fxapprox.passes.pipeline import Rewrite, baseline_timeline
from fxapprox.plan_file import SavedEntry, SavedPlan, saved_entries
from fxapprox.sizes import Size, SizeSymbol, evaluate, hints_of, renamed, resolve
from fxapprox.storage import Fate, Storage
from fxapprox.user_code import GraphBreak
from fxapprox.written import write_text


@dataclass(frozen=True)
class Report:
    """What happens to the activations of one training graph.

    Bytes are given at the sizes it was traced with. Where sizes are dynamic, they are also given as expressions, and
    ``at`` evaluates them for other sizes.

    Attributes:
        baseline_bytes: what the autograd graph would hold between forward and backward under plain torch.compile:
            memory of saved tensors, each piece once, beyond parameters, buffers and the user's inputs.
        saved_bytes: what it holds under this plan; ``measure.stored_bytes`` measures the same.
        decisions: one for each value that is stored, here or by plain torch.compile; largest first.
        fallback: why the graph was left as it is, or "".
        seconds: time spent in each step of the pipeline.
        joint, forward, backward: the graphs, as they went to Inductor.
        graphs: where this is the sum of several graphs: their reports.
        copies: the inputs (weights, images) of which plain torch.compile on this device stores a second, channels-last
            copy for backward, because Inductor's lowering makes one; the partitioner does not see them. Both totals
            have them, ``decisions`` do not.
        gradients: those of the decisions that are gradients, which forward computes and backward returns, mostly of a
            weight: backward would have them in memory from its first operator on, whoever computes them.
        baseline_expr, saved_expr: the bytes as expressions of the sizes.
        sizes: the dynamic dimensions that the expressions are made of.
        conditions: what the sizes have to fulfil for this graph to serve them.
        timeline: what is alive when, in a training step.
        baseline_timeline: gives that of plain torch.compile; made at the first call.
        setting: what a memory budget chose, in words; "" without one.
        options: what was asked for; None where that is not known.
        segments: what backward computes again from checkpoints.
        outputs: how many of what forward returns is the user's; the rest is saved.
        activations: every forward value of the joint graph, classified; none if it was left alone.
        recomputed: names of those of them that backward recomputes from what is stored.
        spliced: where codecs stand in the two graphs.
        inputs: {input of the graphs: what the user calls it}, for example "blocks.0.weight".
        breaks: the graph breaks between the graphs, from ``explain``; what crosses one counts once.
        shared: how many compiled models have run the graph: it serves all that are alike, and stores this for each.
    """

    baseline_bytes: int
    saved_bytes: int
    decisions: tuple[Decision, ...]
    fallback: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    joint: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    forward: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    backward: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    graphs: tuple[Report, ...] = ()
    copies: tuple[Decision, ...] = field(default=(), kw_only=True)
    gradients: tuple[Decision, ...] = field(default=(), kw_only=True)
    baseline_expr: sympy.Expr = field(kw_only=True)
    saved_expr: sympy.Expr = field(kw_only=True)
    sizes: tuple[SizeSymbol, ...] = field(default=(), kw_only=True)
    conditions: tuple[sympy.Basic, ...] = field(default=(), kw_only=True, repr=False)
    entries: tuple[SavedEntry, ...] = field(default=(), kw_only=True, repr=False)
    timeline: Timeline = field(default=Timeline(()), kw_only=True, repr=False, compare=False)
    baseline_timeline: Callable[[], Timeline] = field(
        default=lambda: Timeline(()), kw_only=True, repr=False, compare=False
    )
    setting: str = field(default="", kw_only=True)
    segments: tuple[Segment, ...] = field(default=(), kw_only=True, repr=False)
    breaks: tuple[GraphBreak, ...] = field(default=(), kw_only=True)
    settings: Callable[[], tuple[Point, ...]] = field(default=tuple, kw_only=True, repr=False, compare=False)
    options: Options | None = field(default=None, kw_only=True, repr=False, compare=False)
    outputs: int = field(default=0, kw_only=True, repr=False)
    activations: tuple[Activation, ...] = field(default=(), kw_only=True, repr=False)
    recomputed: tuple[str, ...] = field(default=(), kw_only=True, repr=False)
    spliced: tuple[Spliced, ...] = field(default=(), kw_only=True, repr=False)
    inputs: Mapping[str, str] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    shared: int = field(default=1, kw_only=True, compare=False)

    def without_graphs(self) -> Report:
        """All but what draws the graphs or plans anew, for when the model is gone: those are most of it."""
        baseline = self.baseline_timeline()

        def gone() -> tuple[Point, ...]:
            raise FxApproxError("the model that this graph was planned for is gone; fxapprox.explain plans anew")

        return replace(
            self, joint=None, forward=None, backward=None, activations=(), spliced=(), recomputed=(),
            baseline_timeline=lambda: baseline, settings=gone,
        )  # fmt: skip

    @property
    def plan(self) -> SavedPlan:
        """The plan as ``plan.save(path)`` writes it, for ``compile(model, plan=path)``."""
        return SavedPlan(tuple(report.entries for report in self.graphs or (self,) if report.entries))

    @property
    def peak_bytes(self) -> int:
        """The most bytes that a training step has allocated at once, as our model of Inductor predicts it.

        Parameters and inputs are not counted; outputs, gradients and temporaries are.
        """
        return self.timeline.peak(hints_of(self.sizes))

    @property
    def baseline_peak_bytes(self) -> int:
        """The same for plain torch.compile."""
        return self.baseline_timeline().peak(hints_of(self.sizes))

    @property
    def gradient_bytes(self) -> int:
        """What is alive at the end of a training step, in the predicted peak as well: gradients and outputs."""
        return evaluate(self.timeline.after_backward, hints_of(self.sizes))

    @property
    def exact_bytes(self) -> int:
        """All values of ``decisions``, if each of them were saved as it is."""
        return sum(math.prod(d.shape) * getattr(torch, d.dtype).itemsize for d in self.decisions)

    def pareto(self) -> tuple[Point, ...]:
        """What each step down in memory costs: the settings that a budget chooses from, by falling predicted peak.

        Those without a lower peak than the one before are left out. Takes about as long as planning
        once for each; nothing is compiled or run.

        Returns: for a model with several graphs the settings of all of them together.
        """
        hints = hints_of(self.sizes)
        found: list[Point] = []
        for point in self.settings():
            peak = point.timeline.peak(hints)
            if not found or is_lower(peak, found[-1].peak_bytes):
                found.append(replace(point, peak_bytes=peak))
        return tuple(found)

    @property
    def baseline_copies_bytes(self) -> int:
        """How much of ``baseline_bytes`` is copies of inputs."""
        return sum(copy.bytes_before for copy in self.copies)

    @property
    def early_gradient_bytes(self) -> int:
        """How much of ``saved_bytes`` is gradients that backward only returns."""
        return sum(gradient.bytes_after for gradient in self.gradients)

    @property
    def unknown(self) -> dict[str, int]:
        """{operator that fxapprox does not know: bytes that are stored exactly because it reads them}, largest first.

        A value that several of them read counts for each.
        """
        found: dict[str, int] = {}
        for decision in self.decisions:
            for name in decision.unknown:
                found[name] = found.get(name, 0) + decision.bytes_after
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    @property
    def unknown_bytes(self) -> int:
        """Bytes that are stored exactly because an operator that fxapprox does not know reads them."""
        return sum(decision.bytes_after for decision in self.decisions if decision.unknown)

    @property
    def ratio(self) -> float:
        """How many times less is stored; 1.0 where nothing is stored either way."""
        return (
            self.baseline_bytes / self.saved_bytes
            if self.saved_bytes
            else 1.0
            if not self.baseline_bytes
            else float("inf")
        )

    @property
    def average_bits(self) -> float | None:
        """Bits per element over all values whose code has a loss, scales aside; None where there are none."""
        coded = [(decision.bits, math.prod(decision.shape)) for decision in self.decisions if decision.bits is not None]
        elements = sum(count for _, count in coded)
        return sum(bits * count for bits, count in coded) / elements if elements else None

    def at(self, size: int | Mapping[str, int]) -> Report:
        """The report with all bytes (and shapes) for other sizes; the plan is the same.

        Args:
            size: {name of a size in ``sizes``: its value}, or the value where there is one size.

        Raises:
            OptionError: a size is unknown or missing, or the graph does not serve it.
        """
        return self._at(resolve(size, self.sizes, self.conditions))

    def _at(self, values: Mapping[str, int]) -> Report:
        decisions = [decision.at(values) for decision in self.decisions]
        return replace(
            self,
            baseline_bytes=evaluate(self.baseline_expr, values),
            saved_bytes=evaluate(self.saved_expr, values),
            decisions=tuple(sorted(decisions, key=_largest_first)),
            copies=tuple(copy.at(values) for copy in self.copies),
            gradients=tuple(gradient.at(values) for gradient in self.gradients),
            graphs=tuple(graph._at(values) for graph in self.graphs),
            sizes=tuple(replace(symbol, hint=values[symbol.name]) for symbol in self.sizes),
        )

    def to_json(self) -> str:
        """The report as JSON, without the graphs: docs/report-json.md."""
        from fxapprox.report_json import document

        return json.dumps(document(self), indent=1)

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one HTML file that needs nothing else and no network; see docs/html-report.md.

        Args:
            path: where it is written; None: nowhere.

        Returns: the HTML.

        Raises:
            FxApproxError: the file cannot be written.
        """
        from fxapprox.html import page

        return _written(page(self), path)

    def to_trace(self, path: str | Path | None = None) -> str:
        """Memory over a training step in the trace event format, for Perfetto and chrome://tracing.

        The time axis is the order of kernels, one millisecond each: what is predicted is when memory is taken and
        given back, not how long a kernel runs.

        Args:
            path: where it is written; None: nowhere.

        Returns: the JSON.

        Raises:
            FxApproxError: the file cannot be written.
        """
        from fxapprox.trace import trace_json

        return _written(trace_json(self), path)

    def _repr_html_(self) -> str:
        """What a notebook shows: the totals and a table as plain HTML, and the whole report in a frame."""
        from fxapprox.html import notebook

        return notebook(self)

    def __str__(self) -> str:
        from fxapprox.table import report_text

        return report_text(self)


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
    alive_when = timeline(result.forward, result.backward, num_fwd_outputs=count, lowering=lowering)
    alive_when = alive_when.named(_names_of_saved(result))
    used = alive_when.symbols | _free_symbols(
        baseline, saved, *(size for d in (*decisions, *copies) for size in (*d.sizes, d.expr_after))
    )
    return Report(
        evaluate(baseline, hints),
        evaluate(saved, hints),
        tuple(sorted(decisions, key=_largest_first)),
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
        inputs=_named_inputs(gm, names),
    )


def _named_inputs(gm: fx.GraphModule, names: Sequence[str]) -> dict[str, str]:
    placed = ((node.name, adapter.input_position(node)) for node in gm.graph.find_nodes(op="placeholder"))
    return {node: names[at] for node, at in placed if at is not None and at < len(names) and names[at]}


def merge(reports: Sequence[Report]) -> Report:
    """The sum of several graphs' reports; a single one as it is.

    Sizes of two graphs that have name, source and hint in common are taken for one; others get names of their own.
    """
    if len(reports) == 1:
        return reports[0]
    reports, sizes = _common_sizes(reports)
    seconds: dict[str, float] = {}
    for report in reports:
        for name, lap in report.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + lap
    return Report(
        sum(r.baseline_bytes for r in reports),
        sum(r.saved_bytes for r in reports),
        tuple(sorted((d for r in reports for d in r.decisions), key=_largest_first)),
        "; ".join(r.fallback for r in reports if r.fallback),
        seconds,
        graphs=tuple(reports),
        copies=tuple(copy for r in reports for copy in r.copies),
        gradients=tuple(gradient for r in reports for gradient in r.gradients),
        baseline_expr=sum((r.baseline_expr for r in reports), sympy.Integer(0)),
        saved_expr=sum((r.saved_expr for r in reports), sympy.Integer(0)),
        sizes=sizes,
        conditions=tuple(c for r in reports for c in r.conditions),
        timeline=joined([r.timeline for r in reports]),
        baseline_timeline=cache(lambda: joined([r.baseline_timeline() for r in reports])),
        setting="; ".join(dict.fromkeys(r.setting for r in reports if r.setting)),
        segments=tuple(segment for r in reports for segment in r.segments),
        settings=cache(lambda: joined_points([r.settings() for r in reports])),
        options=reports[0].options,
    )


def _common_sizes(reports: Sequence[Report]) -> tuple[list[Report], tuple[SizeSymbol, ...]]:
    """The reports with one name for each size, and all sizes."""
    known: dict[str, SizeSymbol] = {}
    found = []
    for report in reports:
        names: dict[str, str] = {}
        for symbol in report.sizes:
            name, serial = symbol.name, 1
            while name in known and (known[name].source, known[name].hint) != (symbol.source, symbol.hint):
                name, serial = f"{symbol.name}_{serial}", serial + 1
            names[symbol.name] = name
            known[name] = replace(symbol, name=name).within(known.get(name))
        found.append(_renamed(report, {old: new for old, new in names.items() if old != new}))
    return found, tuple(known.values())


def _renamed(report: Report, names: Mapping[str, str]) -> Report:
    if not names:
        return report

    def own(decision: Decision) -> Decision:
        return replace(
            decision,
            sizes=tuple(size if isinstance(size, int) else renamed(size, names) for size in decision.sizes),
            expr_before=renamed(decision.expr_before, names),
            expr_after=renamed(decision.expr_after, names),
        )

    return replace(
        report,
        decisions=tuple(map(own, report.decisions)),
        copies=tuple(map(own, report.copies)),
        gradients=tuple(map(own, report.gradients)),
        baseline_expr=renamed(report.baseline_expr, names),
        saved_expr=renamed(report.saved_expr, names),
        sizes=tuple(replace(symbol, name=names.get(symbol.name, symbol.name)) for symbol in report.sizes),
        conditions=tuple(renamed(condition, names) for condition in report.conditions),
        timeline=report.timeline.renamed(names),
        baseline_timeline=cache(lambda: report.baseline_timeline().renamed(names)),
        settings=cache(lambda: tuple(replace(p, timeline=p.timeline.renamed(names)) for p in report.settings())),
    )


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        write_text(path, text)
    return text


def _largest_first(decision: Decision) -> tuple[int, int]:
    return -decision.bytes_before, -decision.bytes_after


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


def _names_of_saved(result: Rewrite) -> dict[str, str]:
    """{an input of backward: the value it carries, and its code}; nothing for a graph that was left alone."""
    if result.fallback or not result.parts:
        return {}
    coded = {node: f"{s.value}{CODED}{s.codec.text}" for s in result.spliced for node in s.encode}
    crossing = Crossing(result.forward, result.backward, result.joint.num_fwd_outputs)
    return {slot.name: coded.get(value.name, value.name) for value, slot in crossing.inputs.items()}


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
