"""Golden files: what is stored of small models, and why; and the graphs that go to Inductor.

A change here is a change in what users get: look at the difference, then run pytest --update-golden.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxapprox
from tests import models
from tests.dumps import activations_dump, decisions_dump, graph_dump
from tests.passes.graphs import classified

WEIGHT = torch.ones(16, 16, requires_grad=True)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_what_is_stored(name: str, golden: Callable[[str, str], None]) -> None:
    case = models.MODELS[name]()
    report = fxapprox.explain(lambda *args: case.loss(case.model(*args)), *case.args, bits=4)
    golden(f"stored/{name}.txt", decisions_dump(report.decisions))


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
