"""The report as JSON: docs/report-json.md names the fields that there are, and numbers add up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.show.json import SCHEMA
from tests.passes.test_advance import LanguageModel, batch
from tests.passes.test_checkpoint import clamped

DOCUMENT = Path(__file__).parents[2] / "docs" / "report-json.md"


def convolutions() -> nn.Sequential:
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers)


@cache
def documents() -> dict[str, dict[str, Any]]:
    """Reports with everything in them: dynamic sizes, checkpoints that hold something, graph breaks."""
    torch.manual_seed(0)
    net, x = convolutions(), torch.randn(4, 3, 12, 12)

    def broken(x: Tensor) -> Tensor:
        x = net[:3](x)
        torch._dynamo.graph_break()
        return net[3:](x).square().mean()

    reports = {
        "dynamic": fxapprox.explain(lambda x: net(x).square().mean(), x, dynamic=True, min_bytes=0, bits=4),
        "segments": fxapprox.explain(
            clamped(), torch.randn(4, 3, 16, 16), min_bytes=0, bits=4, checkpoint=3, checkpoint_bits=8
        ),
        "broken": fxapprox.explain(broken, x, min_bytes=0, bits=4),
        "gradients": fxapprox.explain(LanguageModel(), *batch(), min_bytes=0, bits=4),
    }
    return {name: json.loads(report.to_json()) for name, report in reports.items()}


def fields(value: Any, path: str = "") -> Iterator[str]:
    """Every field of a document: "decisions[].value"."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"{path}.{name}" if path else name
            yield from () if name == "seconds" else fields(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for item in value:
            yield from fields(item, f"{path}[]")


def test_the_document_names_every_field() -> None:
    documented = re.findall(r"^\| `([\w.\[\]]+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(documented) == len(set(documented))
    found = {field for document in documents().values() for field in fields(document)}
    alike = {name: {field for field in found if field.startswith(f"{name}[]")} for name in ("copies", "gradients")}
    assert found.difference(*alike.values()) == set(documented)
    for name, own in alike.items():
        assert {field.replace(name, "decisions") for field in own} == {
            field for field in documented if field.startswith("decisions[].")
        } - {"decisions[].graph"}


def test_the_document_names_the_version() -> None:
    assert f"`schema` is {SCHEMA}." in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dynamic", "segments", "broken"])
def test_bytes_add_up(name: str) -> None:
    data = documents()[name]
    assert data["schema"] == SCHEMA
    for total, part in (("baseline_bytes", "bytes_before"), ("saved_bytes", "bytes_after")):
        copies = sum(d[part] for d in data["copies"])
        assert sum(d[part] for d in data["decisions"]) + copies == data[total]
        assert sum(row[part] for row in data["rows"]) + copies == data[total]
        assert sum(graph[total] for graph in data["graphs"]) == data[total]
    placed = [position for row in data["rows"] for position in row["decisions"]]
    assert sorted(placed) == list(range(len(data["decisions"])))
    assert data["exact_bytes"] >= data["saved_bytes"]
    assert data["peak_bytes"] >= data["gradient_bytes"] > 0


def test_names_are_unique_within_a_graph() -> None:
    data = documents()["broken"]
    assert len(data["graphs"]) == 2
    names = [(d["graph"], d["value"]) for d in data["decisions"]]
    assert len(set(names)) == len(names)
    assert {graph for graph, _ in names} == {0, 1}


def test_segments_say_what_they_start_from() -> None:
    data = documents()["segments"]
    held = {h["value"] for segment in data["segments"] for h in segment["held"]}
    boundary = {value for segment in data["segments"] for value in segment["boundary"]}
    assert boundary
    assert held
    assert boundary <= {d["value"] for d in data["decisions"]}
