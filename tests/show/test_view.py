"""graph_view: every node is in one box, codecs are one box each, and boxes say the truth about their values."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.passes import pipeline
from fxapprox.report.result import Report
from fxapprox.show.view import STAGES, Box, graph_view
from tests.passes.test_checkpoint import Attention, clamped
from tools.zoo import models

MODELS = {
    "clamped": (clamped, torch.randn(4, 3, 16, 16)),
    "attention": (Attention, torch.randn(2, 16, 32)),
    "pooled": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(4, 3, 16, 16)),
}
OPTIONS = {
    "codes": {"bits": 4},
    "exact": {"bits": None},
    "segments": {"bits": 4, "checkpoint": 3},
    "coded segments": {"bits": 4, "checkpoint": 3, "checkpoint_bits": 8},
}
BRANCHES = {"aten.where", "aten.logical_not"}  # what takes forward's decision instead of deciding again


@cache
def reported(model: str, options: str) -> Report:
    make, x = MODELS[model]
    net = make()
    return fxapprox.explain(lambda x: net(x).square().mean(), x, min_bytes=0, **OPTIONS[options])


def boxes_of(report: Report, stage: str) -> dict[str, Box]:
    return {box.name: box for box in graph_view(report, stage).boxes}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_every_node_is_in_one_box(model: str, options: str, stage: str) -> None:
    report = reported(model, options)
    gm = getattr(report, "joint" if stage == "plan" else stage)
    view = graph_view(report, stage)
    assert Counter(name for box in view.boxes for name in box.nodes) == Counter(n.name for n in gm.graph.nodes)
    assert len({box.name for box in view.boxes}) == len(view.boxes)
    place = {box.name: i for i, box in enumerate(view.boxes)}
    assert all(place[source] < place[reader] for source, reader in view.edges)
    assert len(set(view.edges)) == len(view.edges)
    home = {name: box.name for box in view.boxes for name in box.nodes}
    read = {(home[source.name], home[node.name]) for node in gm.graph.nodes for source in node.all_input_nodes}
    assert set(view.edges) == {(source, reader) for source, reader in read if source != reader}


@pytest.mark.parametrize("stage", ["forward", "backward"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_boxes_stand_for_the_values_that_they_name(model: str, options: str, stage: str) -> None:
    """Codecs and recomputation make new nodes, whose names may be those of other values."""
    report = reported(model, options)
    values = {a.name: a for a in report.activations}
    segments = report.segments if stage == "backward" else ()
    again = {made: source for segment in segments for made, source in segment.again}
    for box in graph_view(report, stage).boxes:
        about = values.get(again.get(box.name, box.name))
        if box.kind not in ("operator", "boundary") or box.op == "saved" or about is None or not box.storage:
            continue
        if box.op == "aten.scalar_tensor" and about.op != box.op:
            continue  # of a branch: its limit
        assert box.op == about.op or box.op in BRANCHES, box
        assert box.shape == about.shape or not box.dtype, box
        assert (box.module, box.source) == (about.module, about.source)


def test_a_codec_is_one_box_in_each_half() -> None:
    report = reported("clamped", "codes")
    coded = {d.value for d in report.decisions if d.bits is not None}
    forward, backward = boxes_of(report, "forward"), boxes_of(report, "backward")
    assert coded
    for value in coded:
        decision = next(d for d in report.decisions if d.value == value)
        quantize, dequantize = forward[f"quantize({value})"], backward[f"dequantize({value})"]
        assert quantize.op == dequantize.op == decision.storage
        assert quantize.bytes == decision.bytes_after
        assert dequantize.shape == decision.shape
        assert quantize.reason == decision.reason
        assert value in quantize.arguments
        assert len(quantize.nodes) > 10
    assert not [box for box in backward.values() if box.kind == "quantize"]


def test_segments_encode_again_and_show_their_boundaries() -> None:
    report = reported("clamped", "coded segments")
    backward = boxes_of(report, "backward")
    quantized = {box.name for box in backward.values() if box.kind == "quantize"}
    assert quantized
    coded = {d.value for d in report.decisions if d.bits is not None and "recomputed in segment" in d.storage}
    assert {f"quantize({value})" for value in coded} <= quantized
    boundary = {name for segment in report.segments for name in segment.boundary}
    assert boundary
    for stage in ("plan", "forward"):
        assert {name for name, box in boxes_of(report, stage).items() if box.kind == "boundary"} == boundary
    carried = [box for box in backward.values() if box.kind == "boundary"]
    assert {box.op for box in carried} == {"saved"}
    assert all(any(box.name.startswith(name) for name in boundary) for box in carried)
    assert {f"dequantize({name})" for name in boundary} <= backward.keys()


def test_the_plan_says_of_every_value_what_happens_to_it() -> None:
    report = reported("clamped", "codes")
    boxes = boxes_of(report, "plan")
    for decision in report.decisions:
        assert boxes[decision.value].storage == decision.storage
    recomputed = {box.name for box in boxes.values() if box.storage == "recomputed"}
    assert recomputed == set(report.recomputed) - {d.value for d in report.decisions if d.storage != "recomputed"}
    for box in boxes.values():
        assert bool(box.storage) == (box.half == "forward" and box.kind != "output")
        assert bool(box.reason) == bool(box.storage)


def test_a_graph_left_alone_is_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise fxapprox.UnsupportedGraph("plan", "made up")

    monkeypatch.setattr(pipeline, "plan", refuse)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with pytest.warns(UserWarning, match="stores this graph exactly"):
        report = fxapprox.explain(lambda x: net(x).square().mean(), torch.randn(64, 64), bits=None)
    assert report.fallback
    for stage in STAGES:
        assert graph_view(report, stage).boxes


def test_bad_stages_and_sums_are_refused() -> None:
    report = reported("pooled", "codes")
    with pytest.raises(ValueError, match="expected one of joint, plan, forward, backward"):
        graph_view(report, "middle")

    def broken(x: torch.Tensor) -> torch.Tensor:
        x = models.MODELS["mlp_dropout"]().model(x)
        torch._dynamo.graph_break()
        return x.exp().sum()

    merged = fxapprox.explain(broken, torch.randn(8, 64, requires_grad=True))
    with pytest.raises(ValueError, match=r"one of report\.graphs"):
        graph_view(merged, "plan")
