"""dot: what is drawn is the view, and Graphviz understands it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import pydot
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fxapprox
from fxapprox.codecs import Cast, Exact, Group, Mask, Threshold
from fxapprox.ir.storage import Fate, Storage
from fxapprox.show.dot import COLOURS, dot_text, drawing, storage_group
from fxapprox.show.view import graph_view
from tests.show.test_view import reported


def everything(cluster: pydot.Graph) -> tuple[list[pydot.Node], list[pydot.Edge]]:
    nodes, edges = list(cluster.get_nodes()), list(cluster.get_edges())
    for inner in cluster.get_subgraphs():
        more = everything(inner)
        nodes, edges = nodes + more[0], edges + more[1]
    return nodes, edges


@pytest.mark.parametrize("stage", ["plan", "backward"])
def test_every_box_and_edge_is_drawn(stage: str) -> None:
    report = reported("clamped", "coded segments")
    view = graph_view(report, stage)
    nodes, edges = everything(drawing([report], [stage]))
    drawn = [node for node in nodes if node.get_name().startswith("g0_")]
    assert len(drawn) == len(view.boxes)
    assert len(edges) == len(view.edges)
    labels = " ".join(str(node.get("label")) for node in drawn)
    assert all(f"<b>{box.name}</b>" in labels or f"{box.name}<br/>" in labels for box in view.boxes)
    groups = {storage_group(box) for box in view.boxes}
    legend = next(str(node.get("label")) for node in nodes if node.get_name() == "colours")
    assert groups == {group for group, (_, text) in COLOURS.items() if f">{text}<" in legend}


def test_modules_are_nested_clusters() -> None:
    net = nn.ModuleDict({"deep": nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh())), "head": nn.Linear(8, 8)})
    report = fxapprox.explain(lambda x: net["head"](net["deep"](x)).exp().sum(), torch.randn(4, 8))
    text = dot_text([report], ["plan"])
    for name in ("deep.0", "head", "forward", "backward"):
        assert f'label="{name}"' in text or f"label={name}" in text, name


# what module paths, sources and reasons may hold, and DOT and its HTML have a meaning for
TEXTS = st.text(
    st.sampled_from("ab01 \"\\'<>&{}[]|;:,=-./\n\t\r\0%#\N{GREEK SMALL LETTER MU}\ud800"), min_size=1
) | st.sampled_from(
    ["graph", "node", "subgraph", "strict", "digraph", "edge", "<b>bold</b>", "<", "&lt;", "\\N", "a\\", "-1", "a:b"]
)


@pytest.mark.filterwarnings("ignore:.* deprecated:DeprecationWarning")  # pydot's parser calls pyparsing by old names
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=st.lists(TEXTS, min_size=4, max_size=4, unique=True), reason=TEXTS, source=TEXTS)
def test_any_text_is_drawn_as_it_is(names: list[str], reason: str, source: str) -> None:
    module, other, op, argument = names
    whole = reported("pooled", "codes")
    view = graph_view(whole, "plan")
    first, second, *_ = (box for box in view.boxes if box.kind == "operator")
    boxes = (
        replace(first, module=module.replace(".", "_"), op=op, reason=reason, source=source),
        replace(second, module=other.replace(".", "_"), op=argument, kind="input"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxapprox.show.dot.graph_view", lambda report, stage: replace(view, boxes=boxes, edges=()))
        (parsed,) = pydot.graph_from_dot_data(dot_text([whole], ["plan"]))
    nodes, _ = everything(parsed)
    drawn = [node for node in nodes if node.get_name().startswith("g0_")]
    lines = [list(ElementTree.fromstring(f"<x>{node.get('label')[1:-1]}</x>").itertext()) for node in drawn]
    assert sorted(line[0] for line in lines) == sorted((first.name, shown_text(argument)))
    assert any(shown_text(op) in line for line in lines)
    labels = {unquoted(cluster.get("label")) for cluster in clusters(parsed)}
    assert {shown_text(module.replace(".", "_")), shown_text(other.replace(".", "_"))} <= labels
    tooltip = next(unquoted(node.get("tooltip")) for node in drawn if node.get_name() == "g0_plan_0")
    assert tooltip == " | ".join(map(shown_text, (boxes[0].module, source, reason)))


def clusters(graph: pydot.Graph) -> list[pydot.Graph]:
    inside = graph.get_subgraphs()
    return [*inside, *(deeper for cluster in inside for deeper in clusters(cluster))]


def unquoted(text: str) -> str:
    """What Graphviz shows of a quoted string."""
    assert text[0] == text[-1] == '"'
    return unescape(text[1:-1].replace('\\"', '"').replace("\\\\", "\\"))


def shown_text(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@pytest.mark.parametrize(
    ("how", "group"),
    [(Storage.stored(Threshold(4)), "code"), (Storage(Fate.STORED, Group(8), role="boundary"), "code"),
     (Storage.stored(Mask()), "lossless"), (Storage.stored(Exact()), "exact"), (Storage.carried("relu"), "carried"),
     (Storage.stored(Group(4), segment=2), "recomputed"), (Storage(Fate.FREE), "free"),
     (Storage(Fate.STORED, Mask(), role="for recomputation"), "lossless"), (Storage(Fate.UNNEEDED), "unneeded"),
     (Storage.stored(Cast()), "code"), (None, "free")],
)  # fmt: skip
def test_colours_say_how_a_value_is_kept(how: Storage | None, group: str) -> None:
    box = graph_view(reported("pooled", "codes"), "plan").boxes[0]
    assert storage_group(replace(box, how=how)) == group


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_it() -> None:
    text = dot_text([reported("pooled", "codes")], ["plan", "backward"])
    drawn = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True)
    assert "dequantize(" in drawn.stdout
    assert drawn.stderr == ""


def test_without_pydot_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(fxapprox.FxApproxError, match=r"pip install 'fxapprox\[dot\]'"):
        dot_text([reported("pooled", "codes")], ["plan"])
