"""A report as plain data: what the scripts of the HTML report draw from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxapprox.ir.records import Decision, Segment
from fxapprox.memory.timeline import Timeline
from fxapprox.report.data import ReportData
from fxapprox.show.html.graphs import graphs_data
from fxapprox.show.html.storage import GROUPS, storage_group, totals
from fxapprox.show.summary import notes, unknown_text
from fxapprox.sizes import evaluate, hints_of


def report_data(report: ReportData) -> dict[str, Any]:
    """Everything that the page shows; JSON can hold it.

    Of a model with several graphs, the first view is their sum, whose decisions are those of the others.
    """
    views = [_view(report, "all graphs" if report.graphs else "the graph")]
    views += [_view(graph, f"graph {i + 1} of {len(report.graphs)}") for i, graph in enumerate(report.graphs)]
    return {"groups": GROUPS, "views": views}


def setting_text(report: ReportData) -> str:
    """What was asked for, as ``compile`` takes it."""
    return report.setting if report.options is None else report.options.text


def _view(report: ReportData, name: str) -> dict[str, Any]:
    values = hints_of(report.sizes)
    own, plain = report.timeline, report.baseline_timeline()
    return {
        "name": name,
        "stored": [report.baseline_bytes, report.saved_bytes],
        "peak": [report.baseline_peak_bytes, report.peak_bytes],
        "setting": setting_text(report),
        "bits": report.average_bits,
        "fallback": report.fallback,
        "notes": [*notes(report), *filter(None, [unknown_text(report)])],
        "totals": totals(report.decisions),
        "decisions": [] if report.graphs else [_decision(decision) for decision in report.decisions],
        "plain": _timeline(plain, values, ()),
        "plan": _timeline(own, values, report.segments),
        "graph": graphs_data(report),
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "value": decision.value,
        "module": decision.module,
        "dtype": decision.dtype,
        "shape": list(decision.shape),
        "class": decision.kind.value,
        "storage": decision.storage,
        "group": storage_group(decision.how),
        "before": decision.bytes_before,
        "after": decision.bytes_after,
        "reason": decision.reason,
        "source": decision.source,
    }


def _timeline(timeline: Timeline, values: Mapping[str, int], segments: tuple[Segment, ...]) -> dict[str, Any]:
    """Moments as [name, op, module, role], forward's first; lives as [name, kind, bytes, start, until]; codes as
    [moment, "encodes" or "decodes", name]; boundaries as [moment in which forward makes it, name]."""
    end = len(timeline.moments)
    boundary = {name for segment in segments for name in segment.boundary}
    saved = [life for life in timeline.lives if life.kind == "saved"]
    coded = [life for life in saved if life.codec is not None]
    return {
        "forward": timeline.forward_moments,
        "moments": [[m.name, m.op, m.module, m.role] for m in timeline.moments],
        "lives": [
            [life.text, life.kind, evaluate(life.size, values), life.start, end if life.until is None else life.until]
            for life in timeline.lives
        ],
        "codes": [
            *dict.fromkeys((life.start, "encodes", life.name) for life in coded),
            *dict.fromkeys((life.until - 1, "decodes", life.name) for life in coded if life.until is not None),
        ],
        "boundaries": [*dict.fromkeys((life.start, life.name) for life in saved if life.name in boundary)],
    }
