"""Graphs as text: one line for each operator, and one for each value that is quantized or dequantized."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxapprox.amounts import size_text
from fxapprox.report.data import ReportData
from fxapprox.show.table import shape_text
from fxapprox.show.view import Box, GraphView, graph_view, graphs_at

COMMENTS = 80  # the column in which what is known of a line stands, if the line is shorter
TITLES = {
    "joint": "joint: forward and backward, as torch traced them",
    "plan": "plan: forward and backward, with what happens to each value",
    "forward": "forward: what training runs, and what it leaves for backward",
    "backward": "backward: what training runs",
}


def graphs_text(reports: Sequence[ReportData], stages: Sequence[str]) -> str:
    """The graphs of each report at the given stages.

    Args:
        reports: of one graph each.
        stages: see :func:`fxapprox.show.view.graphs_at`.
    """
    many = len(reports) > 1
    parts = [
        view_text(graph_view(own, half), (f"graph {i}: " if many else "") + TITLES.get(title, title))
        for i, report in enumerate(reports)
        for stage in stages
        for title, own, half in graphs_at(report, stage)
    ]
    return "\n".join(parts)


def view_text(view: GraphView, title: str) -> str:
    """A view, one line for each box."""
    return "\n".join([f"# {title}", *(_line(box, view.stage) for box in view.boxes)]) + "\n"


def _line(box: Box, stage: str) -> str:
    """``name: f32[8, 16] = operator(arguments)  # module, source, storage``."""
    if box.kind == "output":
        return f"return {', '.join(box.arguments)}"
    code = f"{box.name}{_type(box)} = {_made(box)}"
    comment = ", ".join(part for part in (box.module, box.source.partition(" ")[0], _told(box, stage)) if part)
    return f"{code:<{COMMENTS}}  # {comment}" if comment else code


def _told(box: Box, stage: str) -> str:
    """What a line says of a box beyond what made it."""
    if box.kind == "quantize":
        return size_text(box.bytes)
    if box.kind == "dequantize":
        return box.storage if box.storage != box.op else ""
    if stage in ("joint", "plan") and box.half == "backward":
        return "gradient"
    if stage == "joint":
        return box.reason
    untold = box.kind == "boundary" and (box.how is None or box.how.role != "boundary")
    return f"boundary, {box.storage}" if untold else box.storage


def _type(box: Box) -> str:
    return f": {shape_text(box.dtype, box.shape)}" if box.dtype else ""


def _made(box: Box) -> str:
    """What makes the value of a box."""
    if box.kind == "input" or not box.arguments:
        return box.op
    arguments = ", ".join(box.arguments)
    if box.kind == "quantize":
        return f"to {box.op} ({arguments})"
    if box.kind == "dequantize":
        return f"from {box.op} ({arguments})"
    return f"{box.op}({arguments})"


def raw_text(reports: Sequence[ReportData], stages: Sequence[str]) -> str:
    """The graphs as torch prints them, node by node, codecs in full."""
    graphs = (
        (f"graph {i}: {title}", _graph(own, half))
        for i, report in enumerate(reports)
        for stage in stages
        for title, own, half in graphs_at(report, stage)
    )
    return "\n".join(f"# {title}\n{gm.print_readable(print_output=False)}" for title, gm in graphs)


def _graph(report: ReportData, stage: str) -> fx.GraphModule:
    return getattr(report, "joint" if stage == "plan" else stage)
