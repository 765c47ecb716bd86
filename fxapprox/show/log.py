"""What each compilation tells the outside: artifacts in torch's structured trace, lines in the log ``fxapprox``.

The trace is what ``TORCH_TRACE=folder`` writes and tlparse shows; the log is what ``TORCH_LOGS=fxapprox`` (a line for
each graph) or ``TORCH_LOGS=+fxapprox`` (a line for each decision) prints. Nothing is computed for one that is off.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from fxapprox import torch_adapter as adapter
from fxapprox.amounts import size_text
from fxapprox.ir.records import Decision
from fxapprox.report.data import ReportData
from fxapprox.show.fx import TITLES, view_text
from fxapprox.show.json import document
from fxapprox.show.table import report_text
from fxapprox.show.view import graph_view

log = logging.getLogger("fxapprox")


def compiled(report: ReportData, index: int) -> None:
    """Writes one graph's report to trace and log; ``index``: which graph of its model it is."""
    for name, (encoding, payload) in artifacts(report, index).items():
        adapter.trace_artifact(name, encoding, payload)
    if log.isEnabledFor(logging.INFO):
        log.info("%s", _line(report, index))
    if log.isEnabledFor(logging.DEBUG):
        for decision in report.decisions:
            log.debug("graph %d: %s", index, _decision(decision))
        log.debug("graph %d: %s", index, ", ".join(f"{step} {lap:.3f} s" for step, lap in report.seconds.items()))


def artifacts(report: ReportData, index: int) -> dict[str, tuple[str, Callable[[], str]]]:
    """{name in the trace: (encoding, what makes its content)}."""
    return {
        "fxapprox_decisions": ("string", lambda: report_text(report, everything=True)),
        "fxapprox_report": ("json", lambda: json.dumps(document(report), indent=1)),
        "fxapprox_forward": ("string", lambda: _graph(report, "forward", index)),
        "fxapprox_backward": ("string", lambda: _graph(report, "backward", index)),
        "fxapprox_timing": ("json", lambda: json.dumps({"graph": index, "seconds": report.seconds}, indent=1)),
    }


def _graph(report: ReportData, stage: str, index: int) -> str:
    return view_text(graph_view(report, stage), f"graph {index}: {TITLES[stage]}")


def _line(report: ReportData, index: int) -> str:
    seconds = f"planned in {sum(report.seconds.values()):.2f} s"
    before, after = size_text(report.baseline_bytes), size_text(report.saved_bytes)
    if report.fallback:
        return f"graph {index}: stored as plain torch.compile does ({before}): {report.fallback}; {seconds}"
    peak, plain = size_text(report.peak_bytes), size_text(report.baseline_peak_bytes)
    return f"graph {index}: stored {after} instead of {before}, peak {peak} instead of {plain}, {seconds}"


def _decision(decision: Decision) -> str:
    shape = f"{decision.dtype}[{', '.join(map(str, decision.shape))}]"
    size = f"{size_text(decision.bytes_before)} -> {size_text(decision.bytes_after)}"
    place = "".join(f" in {module}" for module in [decision.module] if module)
    line = f" [{decision.source}]" if decision.source else ""
    return (
        f"{decision.value}{place} {shape}: {decision.storage}, {size}: {decision.kind.value}, {decision.reason}{line}"
    )
