"""A report as JSON; docs/report-json.md says what each field means."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import sympy

from fxapprox.ir.records import Class, Decision, Reach, Segment
from fxapprox.ir.storage import Storage
from fxapprox.report.data import ReportData
from fxapprox.show.folding import fold

SCHEMA = 3  # grows by one when a field is removed or changes its meaning, not when one is added


def document(report: ReportData) -> dict[str, Any]:
    """The report in lists, dictionaries, strings and numbers; graphs and timelines are left out."""
    graphs = report.graphs or (report,)
    placed = [(decision, index) for index, graph in enumerate(graphs) for decision in graph.decisions]
    placed.sort(key=lambda pair: (-pair[0].bytes_before, -pair[0].bytes_after))
    return {
        "schema": SCHEMA,
        **_totals(report),
        "baseline_expr": str(report.baseline_expr),
        "saved_expr": str(report.saved_expr),
        "sizes": [asdict(symbol) for symbol in report.sizes],
        "breaks": [asdict(each) for each in report.breaks],
        "seconds": report.seconds,
        "graphs": [{**_totals(graph), "shared": graph.shared} for graph in graphs],
        "segments": [{"graph": i, **_segment(s)} for i, graph in enumerate(graphs) for s in graph.segments],
        "unknown": {"operators": report.unknown, "bytes": report.unknown_bytes},
        "decisions": [{"graph": index, **_plain(decision)} for decision, index in placed],
        "rows": _rows([decision for decision, _ in placed]),
        "copies": [_plain(copy) for copy in report.copies],
        "gradients": [_plain(gradient) for gradient in report.gradients],
    }


def _totals(report: ReportData) -> dict[str, Any]:
    return {
        "baseline_bytes": report.baseline_bytes,
        "saved_bytes": report.saved_bytes,
        "exact_bytes": report.exact_bytes,
        "peak_bytes": report.peak_bytes,
        "baseline_peak_bytes": report.baseline_peak_bytes,
        "gradient_bytes": report.gradient_bytes,
        "baseline_copies_bytes": report.baseline_copies_bytes,
        "early_gradient_bytes": report.early_gradient_bytes,
        "setting": report.setting,
        "fallback": report.fallback,
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "boundary": segment.boundary,
        "recomputed": segment.recomputed,
        "operators": segment.operators,
        "flops": segment.flops,
        "held": [{"value": held.name, "storage": held.codec.text} for held in segment.held],
    }


def _rows(decisions: list[Decision]) -> list[dict[str, Any]]:
    """The rows of the table, their decisions by position."""
    position = {id(decision): i for i, decision in enumerate(decisions)}
    return [
        {
            "module": row.module,
            "bytes_before": row.bytes_before,
            "bytes_after": row.bytes_after,
            "decisions": [position[id(decision)] for decision in row.decisions],
        }
        for row in fold(decisions)
    ]


def _how(how: Storage) -> dict[str, Any]:
    return {
        "fate": how.fate.name.lower(),
        "codec": how.codec.label if how.codec is not None else None,
        "lossless": how.lossless,
        "carrier": how.carrier,
        "role": how.role,
        "segment": how.segment - 1 if how.segment is not None else None,
    }


def _plain(decision: Decision) -> dict[str, Any]:
    """The decision's fields as JSON has them: enumerations by their text, expressions as strings."""
    plain = {}
    for item in fields(decision):
        value = getattr(decision, item.name)
        if item.name == "sizes":
            value = [size if isinstance(size, int) else str(size) for size in value]
        elif isinstance(value, (Class, Reach)):
            value = value.value
        elif isinstance(value, Storage):
            plain["storage"], value = value.text, _how(value)
        elif isinstance(value, sympy.Basic):
            value = str(value)
        plain[item.name] = value
    return plain
