"""Graphs as drawings for Graphviz: boxes coloured by how their values are stored, in clusters by module."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

from fxapprox.amounts import size_text
from fxapprox.errors import FxApproxError
from fxapprox.ir.storage import Fate
from fxapprox.report.data import ReportData
from fxapprox.show.table import shape_text
from fxapprox.show.view import Box, GraphView, graph_view, graphs_at

if TYPE_CHECKING:
    import pydot

# {how a value is kept: (colour, what the legend says)}: of Okabe and Ito's palette, which colour-blind people can read
COLOURS = {
    "code": ("#9ecae9", "stored in a few bits"),
    "exact": ("#f2b880", "stored as it is"),
    "lossless": ("#8fd3b6", "stored without loss: masks, integers"),
    "carried": ("#d7ecdf", "a decision in the code of another value"),
    "recomputed": ("#e6e6e6", "computed again in backward"),
    "free": ("#ffffff", "alive anyway: inputs, outputs"),
    "unneeded": ("#ffffff", "not needed in backward"),
    "gradient": ("#f6f0c4", "gradients"),
}
GROUPS = {
    Fate.RECOMPUTED: "recomputed", Fate.CARRIED: "carried", Fate.COPIED: "exact", Fate.FREE: "free",
    Fate.UNNEEDED: "unneeded", Fate.NOT_COPIED: "unneeded",
}  # fmt: skip
SHAPES = {"input": "oval", "output": "oval", "boundary": "octagon"}
CODEC_BORDER = 2.5  # quantize and dequantize stand out
CROSSING = "#2b6cb0"  # edges from forward to backward: what has to be kept
FONT = "Helvetica"

Boxes: TypeAlias = "list[tuple[tuple[str, ...], Box]]"  # each with the modules that it lies in, from outside in


def dot_text(reports: Sequence[ReportData], stages: Sequence[str]) -> str:
    """The graphs in the DOT language, all in one drawing; arguments and errors as for :func:`drawing`."""
    return drawing(reports, stages).to_string()


def drawing(reports: Sequence[ReportData], stages: Sequence[str]) -> pydot.Dot:
    """The graphs, all in one drawing.

    Args:
        reports: of one graph each.
        stages: see :func:`fxapprox.show.view.graphs_at`.

    Raises:
        FxApproxError: pydot is not installed.
    """
    pydot = _pydot()
    defaults = {"fontname": f'"{FONT}"', "fontsize": 10}
    whole = pydot.Dot("fxapprox", graph_type="digraph", rankdir="TB", **defaults)
    whole.set_node_defaults(shape="box", style='"filled,rounded"', margin='"0.08,0.04"', height=0.3, **defaults)
    whole.set_edge_defaults(color='"#707070"', arrowsize=0.6)
    groups: set[str] = set()
    graphs = ((i, drawn) for i, report in enumerate(reports) for stage in stages for drawn in graphs_at(report, stage))
    for i, (title, report, stage) in graphs:
        view = graph_view(report, stage)
        place = f"g{i}_{title.replace(' ', '_')}"
        whole.add_subgraph(_drawn(pydot, view, place, f"graph {i}: {title}" if len(reports) > 1 else title))
        groups.update(storage_group(box) for box in view.boxes)
    whole.add_subgraph(_legend(pydot, groups))
    return whole


def check_installed() -> None:
    """Raises FxApproxError where pydot is not installed."""
    _pydot()


def _pydot() -> Any:
    try:
        import pydot
    except ImportError as error:
        raise FxApproxError("--format dot needs pydot: pip install 'fxapprox[dot]'") from error
    return pydot


def _drawn(pydot: Any, view: GraphView, place: str, title: str) -> Any:
    """One view as a cluster; the halves of a training step stand apart."""
    whole = _cluster(pydot, place, title)
    ids = {box.name: f"{place}_{i}" for i, box in enumerate(view.boxes)}
    paths = {box.module for box in view.boxes}
    for half in dict.fromkeys(box.half for box in view.boxes):
        boxes = [(_path(box, paths), box) for box in view.boxes if box.half == half]
        part = whole if view.stage == half else _cluster(pydot, f"{place}_{half}", half)
        _fill(pydot, part, boxes, ids, f"{place}_{half}")
        if part is not whole:
            whole.add_subgraph(part)
    half_of = {box.name: box.half for box in view.boxes}
    for source, reader in view.edges:
        crossing = {"color": f'"{CROSSING}"'} if half_of[source] != half_of[reader] else {}
        whole.add_edge(pydot.Edge(ids[source], ids[reader], **crossing))
    return whole


def _path(box: Box, modules: Collection[str]) -> tuple[str, ...]:
    """The modules that a box lies in: a parameter's are those that it belongs to."""
    owner = box.op.rpartition(".")[0] if box.kind == "input" else ""
    path = box.module or (owner if owner in modules else "")
    return tuple(path.split(".")) if path else ()


def _fill(pydot: Any, cluster: Any, boxes: Boxes, ids: Mapping[str, str], place: str) -> None:
    """Puts boxes into a cluster, those of modules within it into clusters of their own."""
    inner: dict[str, Boxes] = {}
    for path, box in boxes:
        if path:
            inner.setdefault(path[0], []).append((path[1:], box))
        else:
            cluster.add_node(_node(pydot, box, ids[box.name]))
    for i, (name, within) in enumerate(inner.items()):
        label, within = _descended(name, within)
        module = _cluster(pydot, f"{place}_{i}", label)  # numbered: modules may be called anything
        _fill(pydot, module, within, ids, f"{place}_{i}")
        cluster.add_subgraph(module)


def _descended(name: str, boxes: Boxes) -> tuple[str, Boxes]:
    """A module with nothing in it but one other is drawn as one cluster: "blocks.0"."""
    while all(path for path, _ in boxes) and len({path[0] for path, _ in boxes}) == 1:
        name = f"{name}.{boxes[0][0][0]}"
        boxes = [(path[1:], box) for path, box in boxes]
    return name, boxes


def _cluster(pydot: Any, name: str, label: str) -> Any:
    return pydot.Cluster(name, label=_quoted(label), style="rounded", color='"#b0b0b0"', fontname=FONT, fontsize=10)


def _node(pydot: Any, box: Box, name: str) -> Any:
    colour, _ = COLOURS[storage_group(box)]
    style = "filled,dashed" if storage_group(box) == "unneeded" else "filled"
    about = " | ".join(part for part in (box.module, box.source, box.reason) if part)
    return pydot.Node(
        name, label=_label(box), shape=SHAPES.get(box.kind, "box"), style=f'"{style}"', fillcolor=f'"{colour}"',
        tooltip=_quoted(about or box.name),
        penwidth=CODEC_BORDER if box.kind in ("quantize", "dequantize") else 1,
    )  # fmt: skip


def _quoted(text: str) -> str:
    """A string of the DOT language that shows this text."""
    escaped = _printable(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _printable(text: str) -> str:
    """The text with what cannot be drawn, line breaks among it, as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _label(box: Box) -> str:
    """Graphviz's HTML: the name, what made it, its shape, and how it is stored; inputs by the user's names."""
    size = f", {size_text(box.bytes)}" if box.kind == "quantize" else ""
    shape = shape_text(box.dtype, box.shape) if box.dtype else ""
    title, made = (box.op, box.name) if box.kind == "input" else (box.name, box.op if box.kind != "output" else "")
    kept = box.storage + size if box.storage != box.op else size.removeprefix(", ")
    bold, *others = (escape(_printable(line)) for line in (title, *filter(None, (made, shape, kept))))
    lines = (f"<b>{bold}</b>", *others)
    return f"<{'<br/>'.join(lines)}>"


def storage_group(box: Box) -> str:
    """The key in ``COLOURS`` for the way a box's value is kept."""
    how = box.how
    if how is None:
        return "gradient" if box.half == "backward" else "free"
    if how.codec is None or how.segment is not None:
        return GROUPS[how.fate] if how.segment is None else "recomputed"
    return "code" if not how.lossless else "exact" if how.is_exact else "lossless"


def _legend(pydot: Any, groups: Collection[str]) -> Any:
    """What the colours mean that are in the drawing."""
    rows = "".join(
        f'<tr><td bgcolor="{colour}" border="1">&nbsp;&nbsp;&nbsp;&nbsp;</td><td align="left">{text}</td></tr>'
        for group, (colour, text) in COLOURS.items() if group in groups
    )  # fmt: skip
    legend = _cluster(pydot, "legend", "how values are kept for backward")
    table = f'<<table border="0" cellborder="0" cellspacing="3">{rows}</table>>'
    legend.add_node(pydot.Node("colours", label=table, shape="plain", style='""'))
    return legend
