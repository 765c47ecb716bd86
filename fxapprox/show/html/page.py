"""Puts the parts of the HTML report together: a template, a style sheet, the scripts and the data."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from fxapprox.amounts import size_text
from fxapprox.report.data import ReportData
from fxapprox.show.html.data import report_data, setting_text
from fxapprox.show.html.storage import totals

# One job each, in this order: what is defined in one is used in those behind it.
SCRIPTS = (
    "dom", "units", "tooltip", "headline", "memory", "timeline", "table", "modules", "layers", "tree", "graph", "main",
)  # fmt: skip
ROWS = 20  # of the table that needs no scripts


def page(report: ReportData) -> str:
    """The report as one HTML document that asks for nothing else: no fonts, no scripts, no network."""
    folder = files("fxapprox.show.html")
    scripts = [(folder / "js" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    style = (folder / "report.css").read_text(encoding="utf-8")
    return (
        _templates()
        .get_template("page.html")
        .render(report=report, data=report_data(report), style=style, scripts=scripts, **_static(report))
    )


def notebook(report: ReportData) -> str:
    """What a notebook shows: totals and table as plain HTML, which is left where scripts and frames are not allowed,
    and the page in a frame of its own, so that two reports know nothing of each other."""
    return _templates().get_template("notebook.html").render(report=report, page=page(report), **_static(report))


def _static(report: ReportData) -> dict[str, object]:
    """What the templates show without scripts."""
    return {
        "setting": setting_text(report),
        "peak": report.peak_bytes,
        "baseline_peak": report.baseline_peak_bytes,
        "totals": totals(report.decisions),
        "rows": report.decisions[:ROWS],
    }


@cache
def _templates() -> Environment:
    """The templates; names of values are escaped wherever they stand, in the data too."""
    made = Environment(
        loader=PackageLoader("fxapprox.show.html", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters["bytes"] = size_text
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in the order given, and small
    return made
