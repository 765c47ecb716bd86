"""The graphs of a report as plain data, small enough for models with thousands of operators."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from fxapprox.report.data import ReportData
from fxapprox.show.html.storage import storage_group
from fxapprox.show.view import Box, GraphView, graph_view

# What the page offers, and how it calls them.
STAGES = {
    "plan": "the plan: forward and backward as traced",
    "forward": "forward as it runs",
    "backward": "backward as it runs",
}
FIELDS = (
    "name", "kind", "half", "op", "module", "source", "storage", "group", "bytes", "shape", "dtype", "reason",
)  # fmt: skip


def graphs_data(report: ReportData) -> dict[str, Any]:
    """The graphs of one report: {"stages": {key: {title, boxes, edges}}, "fields": of a box, "texts": table}.

    A box is a list of numbers, places in ``texts`` but for its bytes; an edge is two places in the list of boxes. Of
    the sum of several graphs there is none.
    """
    if report.joint is None:
        return {"stages": {}, "fields": FIELDS, "texts": []}
    texts: dict[Hashable, int] = {}
    stages = {stage: _graph(graph_view(report, stage), title, texts) for stage, title in STAGES.items()}
    return {"stages": stages, "fields": FIELDS, "texts": list(texts)}


def _graph(view: GraphView, title: str, texts: dict[Hashable, int]) -> dict[str, Any]:
    place = {box.name: i for i, box in enumerate(view.boxes)}
    homes = _homes(view)
    return {
        "title": title,
        "boxes": [_box(box, homes[box.name], texts) for box in view.boxes],
        "edges": [[place[source], place[reader]] for source, reader in view.edges],
    }


def _box(box: Box, module: str, texts: dict[Hashable, int]) -> list[int]:
    traits: dict[str, Hashable] = {name: getattr(box, name) for name in FIELDS if name not in ("module", "group")}
    traits.update(module=module, group=storage_group(box.how))
    return [box.bytes if name == "bytes" else texts.setdefault(traits[name], len(texts)) for name in FIELDS]


def _homes(view: GraphView) -> dict[str, str]:
    """The module that each box is drawn in: inputs where they are first read, sums of gradients where these come
    from."""
    boxes = {box.name: box for box in view.boxes}
    homes = {box.name: box.module for box in view.boxes}
    for source, reader in reversed(view.edges):
        if boxes[source].kind == "input" and homes[reader]:
            homes[source] = homes[reader]
    for source, reader in view.edges:
        box = boxes[reader]
        if not box.module and box.half == "backward" and box.op == "aten.add" and homes[source]:
            homes[reader] = homes[source]
    return homes
