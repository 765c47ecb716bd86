"""Golden files: what is stored of small models, and why; the graphs that go to Inductor; and what dump prints.

A change here is a change in what users get: look at the difference, then run pytest --update-golden.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxapprox
from fxapprox.frontend.target import Target
from fxapprox.report.accounting import report_of
from fxapprox.show.dot import dot_text
from fxapprox.show.fx import graphs_text
from fxapprox.show.table import report_text
from fxapprox.show.view import STAGES
from tests.dumps import activations_dump, decisions_dump, graph_dump, storage_dump
from tests.passes.graphs import classified, traced
from tools.zoo import models
from tools.zoo.models.blocks import blocks, mean_square

WEIGHT = torch.ones(16, 16, requires_grad=True)


@pytest.mark.filterwarnings("ignore:average_bits=4 cannot be had")
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_what_is_stored(name: str, golden: Callable[[str, str], None]) -> None:
    case = models.MODELS[name]()
    joint = traced(lambda *args: case.loss(case.model(*args)), *case.args)

    def decisions(bits: int | str) -> tuple[fxapprox.Decision, ...]:
        return report_of(joint.split(bits=bits, lowering="inductor", min_bytes=4096)).decisions

    golden(f"stored/{name}.txt", decisions_dump(decisions(4)))
    for bits in (8, "auto") if name in ("demo_resnet", "gpt", "mlp_dropout", "unet") else ():
        golden(f"stored/{name}_{bits}.txt", storage_dump(decisions(bits)))


def softmax_layer(x: Tensor) -> Tensor:
    return (torch.softmax(x @ WEIGHT, -1) @ WEIGHT).sum()


def gated_layer(x: Tensor) -> Tensor:
    return (F.silu(x @ WEIGHT) * (x @ WEIGHT)).sum()


def rectified_layer(x: Tensor) -> Tensor:
    return (F.relu(x @ WEIGHT) @ WEIGHT).sum()


@pytest.mark.parametrize("layer", [softmax_layer, gated_layer, rectified_layer])
def test_classes(layer: Callable[[Tensor], Tensor], golden: Callable[[str, str], None]) -> None:
    golden(f"classify/{layer.__name__}.txt", activations_dump(tuple(classified(layer, torch.ones(8, 16)).values())))


@pytest.mark.parametrize("bits", [None, 4])
def test_graphs(bits: int | None, golden: Callable[[str, str], None]) -> None:
    report = fxapprox.explain(rectified_layer, torch.ones(8, 16), bits=bits, min_bytes=0)
    assert report.forward is not None
    assert report.backward is not None
    text = f"forward\n{graph_dump(report.forward)}\nbackward\n{graph_dump(report.backward)}"
    golden(f"graphs/rectified_layer_{bits or 'exact'}.txt", text)


@cache
def blocks_report(checkpoint: int | None = None) -> fxapprox.Report:
    """Four equal blocks; with checkpoints, segments from encoded boundaries."""
    step = Target(blocks(), (), mean_square).step
    options = {"checkpoint": checkpoint, "checkpoint_bits": 8} if checkpoint else {}
    return fxapprox.explain(step, torch.ones(4, 8, 16, 16), bits=4, **options)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_table(width: int, golden: Callable[[str, str], None]) -> None:
    golden(f"dump/table_{width}.txt", report_text(blocks_report(), width=width))


def test_whole_table(golden: Callable[[str, str], None]) -> None:
    golden("dump/table_all.txt", report_text(blocks_report(3), width=120, everything=True))


def test_json(golden: Callable[[str, str], None]) -> None:
    data = json.loads(blocks_report().to_json())
    data["seconds"] = sorted(data["seconds"])
    golden("dump/report.json", json.dumps(data, indent=1) + "\n")


@pytest.mark.parametrize("stage", STAGES)
def test_graph_as_text(stage: str, golden: Callable[[str, str], None]) -> None:
    golden(f"dump/fx_{stage}.txt", graphs_text([blocks_report()], [stage]))


def test_segments_as_text(golden: Callable[[str, str], None]) -> None:
    golden("dump/fx_segments.txt", graphs_text([blocks_report(3)], ["forward", "backward"]))


def test_graph_as_drawing(golden: Callable[[str, str], None]) -> None:
    step = Target(blocks(1), (), mean_square).step
    report = fxapprox.explain(step, torch.ones(4, 8, 16, 16), bits=4)
    golden("dump/plan.dot", dot_text([report], ["plan"]))
