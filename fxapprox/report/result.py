"""The report of one graph and what it can be turned into: JSON, a page, a trace, text."""

from __future__ import annotations

import json
from pathlib import Path

from fxapprox.files.written import write_text
from fxapprox.report.data import ReportData
from fxapprox.show.html import notebook, page
from fxapprox.show.json import document
from fxapprox.show.table import report_text
from fxapprox.show.trace import trace_json


class Report(ReportData):
    """What happens to the activations of one training graph: ``ReportData``, and what it can be turned into."""

    def to_json(self) -> str:
        """The report as JSON, without the graphs: docs/report-json.md."""
        return json.dumps(document(self), indent=1)

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one HTML file that needs nothing else and no network; see docs/html-report.md.

        Args:
            path: where it is written; None: nowhere.

        Returns: the HTML.

        Raises:
            FxApproxError: the file cannot be written.
        """
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
        return _written(trace_json(self), path)

    def _repr_html_(self) -> str:
        """What a notebook shows: the totals and a table as plain HTML, and the whole report in a frame."""
        return notebook(self)

    def __str__(self) -> str:
        return report_text(self)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        write_text(path, text)
    return text
