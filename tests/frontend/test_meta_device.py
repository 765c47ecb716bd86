"""explain of models on the meta device: the plan is that of a model with memory, and none is allocated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from tools.zoo import models


def summary(report: fxapprox.Report) -> list[tuple[Any, ...]]:
    """What a report says of each value; names of captured tensors aside."""
    return [(d.value, d.shape, d.storage, d.bytes_before, d.bytes_after, d.module, d.reason) for d in report.decisions]


@pytest.mark.parametrize("name", ["mlp_dropout", "gpt", "llama"])
def test_the_plan_is_that_of_a_model_with_memory(name: str) -> None:
    case = models.MODELS[name]()
    model = case.model

    def loss(out: Any) -> Tensor:
        return (out if isinstance(out, Tensor) else out.logits).float().square().mean()

    real = fxapprox.explain(lambda *args: loss(model(*args)), *case.args, bits=4)
    model.to("meta")
    args = [x.to("meta") for x in case.args]
    parameters = list(model.parameters())
    planned = fxapprox.explain(lambda *args: loss(model(*args)), *args, bits=4)
    assert summary(planned) == summary(real)
    assert planned.peak_bytes == real.peak_bytes
    assert all(p.is_meta for p in model.parameters())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_hundreds_of_gigabytes_of_weights_need_no_memory() -> None:
    with torch.device("meta"):
        model = models.GPT(layers=1, width=65536, heads=512, sequence=256, vocab=1024)
        text = torch.zeros(1, 256, dtype=torch.long)
    assert sum(p.nbytes for p in model.parameters()) > 2e11
    report = fxapprox.explain(model, text, text, bits=4)
    assert report.baseline_bytes > 4 * report.saved_bytes > 0


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tokens(x)))


def test_tied_weights_stay_tied() -> None:
    with torch.device("meta"):
        net, x = Tied(), torch.zeros(4, 16, dtype=torch.long)
    report = fxapprox.explain(lambda x: net(x).exp().sum(), x)
    assert report.joint is not None
    weights = [n for n in report.joint.graph.find_nodes(op="placeholder") if n.meta["val"].shape == (64, 32)]
    assert len(weights) == 1
    assert net.head.weight is net.tokens.weight


def test_tensors_in_functions_are_found() -> None:
    with torch.device("meta"):
        net, x, labels = nn.Linear(16, 4), torch.zeros(64, 16), torch.zeros(64, dtype=torch.long)

    def loss(scores: Tensor) -> Tensor:
        return F.cross_entropy(scores.exp(), labels)

    def scaled(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return 2 * step(x)

    report = fxapprox.explain(partial(scaled, lambda x: loss(net(x))), x, min_bytes=0)
    assert report.baseline_bytes
    assert labels.is_meta


def test_meta_and_real_tensors_may_meet() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    report = fxapprox.explain(lambda x: net(x).square().sum(), torch.randn(64, 16), min_bytes=0, bits=4)
    assert report.baseline_bytes > report.saved_bytes > 0


def test_graph_breaks_are_crossed_on_fake_zeros() -> None:
    with torch.device("meta"):
        first, second, x = nn.Linear(2**20, 64), nn.Linear(64, 2**20), torch.zeros(64, 2**20)

    def broken(x: Tensor) -> Tensor:
        x = first(x).exp()
        torch._dynamo.graph_break()
        return second(x).exp().sum()

    report = fxapprox.explain(broken, x)
    assert len(report.graphs) == 2


def test_values_that_do_not_exist_are_an_error() -> None:
    with torch.device("meta"):
        net, x = nn.Linear(16, 4), torch.zeros(64, 16)

    def branching(x: Tensor) -> Tensor:
        x = net(x).exp()
        if x.sum() > 3:
            x = 2 * x
        return x.sum()

    with pytest.raises(
        fxapprox.FxApproxError, match=r"test_meta_device.py:\d+ in branching: if x.sum.*meta device do not have"
    ):
        fxapprox.explain(branching, x)
