"""The reports of a model's graphs as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import sympy

from fxapprox.ir.records import Decision
from fxapprox.memory.settings import joined_points
from fxapprox.memory.timeline import joined
from fxapprox.report.data import largest_first
from fxapprox.report.result import Report
from fxapprox.sizes import SizeSymbol, renamed


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
        tuple(sorted((d for r in reports for d in r.decisions), key=largest_first)),
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
