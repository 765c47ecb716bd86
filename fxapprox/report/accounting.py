"""How a report is made from a rewrite: the lines (``lines.py``), what they add up to, and what is alive when."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import sympy
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import Codec
from fxapprox.files.plan_file import saved_entries
from fxapprox.ir.crossing import Crossing
from fxapprox.memory.baseline import baseline_timeline
from fxapprox.memory.timeline import timeline
from fxapprox.passes.advance import returned_gradients
from fxapprox.passes.rewrite import Rewrite
from fxapprox.report.data import largest_first
from fxapprox.report.lines import Account, copies_of
from fxapprox.report.result import Report
from fxapprox.sizes import Size, evaluate, hints_of


def report_of(result: Rewrite, *, lowering: str = "inductor", names: Sequence[str] = ()) -> Report:
    """The report of one rewrite.

    Args:
        lowering: what runs the graphs.
        names: what the user calls the inputs of the graph that was traced.
    """
    gm, returned = result.joint.gm, returned_gradients(result.joint)
    symbols = adapter.dynamic_sizes(gm)
    hints = hints_of(symbols)
    account = Account(result, hints)
    copies = copies_of(result, hints) if lowering == "inductor" else ()
    baseline = sympy.sympify(account.baseline + sum(copy.expr_before for copy in copies))
    saved = sympy.sympify(account.saved + sum(copy.expr_after for copy in copies))
    lines = account.lines()
    alive = timeline(
        result.forward, result.backward, num_fwd_outputs=result.joint.num_fwd_outputs, lowering=lowering,
        slices=result.slices,
    ).named(_saved_values(result))  # fmt: skip
    in_lines = (size for line in (*lines, *copies) for size in (*line.sizes, line.expr_after))
    used = alive.symbols | _free_symbols(baseline, saved, *in_lines)
    return Report(
        evaluate(baseline, hints),
        evaluate(saved, hints),
        tuple(sorted(lines, key=largest_first)),
        result.fallback,
        result.seconds,
        gm,
        result.forward,
        result.backward,
        copies=copies,
        gradients=tuple(line for line in lines if line.value in returned),
        baseline_expr=baseline,
        saved_expr=saved,
        sizes=tuple(symbol for symbol in symbols if symbol.name in used),
        conditions=tuple(c for c in adapter.size_conditions(gm) if _free_symbols(c) <= used),
        entries=saved_entries(result.plan, result.activations),
        timeline=alive,
        baseline_timeline=cache(lambda: baseline_timeline(result.traced, result.baseline, lowering)),
        setting=result.setting,
        segments=result.segments,
        settings=cache(result.pareto),
        outputs=result.joint.num_fwd_outputs,
        activations=result.activations,
        recomputed=result.plan.recomputed,
        spliced=result.spliced,
        slices=result.slices,
        kept=result.kept,
        inputs=_named_inputs(gm, names),
    )


def _free_symbols(*sizes: Size | sympy.Basic) -> set[str]:
    return {symbol.name for size in sizes if not isinstance(size, int) for symbol in size.free_symbols}  # type: ignore[attr-defined]


def _saved_values(result: Rewrite) -> dict[str, tuple[str, Codec | None]]:
    """{an input of backward: (the value it carries, in which code)}; nothing for a graph that was left alone."""
    if result.fallback or not result.parts:
        return {}
    coded = {node: (s.value, s.codec) for s in result.spliced for node in s.encode}
    crossing = Crossing(result.forward, result.backward, result.joint.num_fwd_outputs)
    return {slot.name: coded.get(value.name, (value.name, None)) for value, slot in crossing.inputs.items()}


def _named_inputs(gm: fx.GraphModule, names: Sequence[str]) -> dict[str, str]:
    placed = ((node.name, adapter.input_position(node)) for node in gm.graph.find_nodes(op="placeholder"))
    return {node: names[at] for node, at in placed if at is not None and at < len(names) and names[at]}
