"""Fewer bits never store more than more bits, no bits more than exact mode, and exact mode no more than torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.plan import plan
from fxapprox.sizes import evaluate, hints_of
from fxapprox.torch_adapter import dynamic_sizes
from tests.models.zoo import ZOO
from tests.passes.graphs import joint_of

BITS = (None, 8, 4, 2)
# rectifiers behind norms and views, learned slopes, edges, losses over distances and vocabularies, recurrence, routing
MODELS = "volume_unet gated_graph triplet loss_and_logits mlp_dropout gin transformer routed_experts".split()


@pytest.mark.parametrize("name", MODELS)
def test_plans_of_fewer_bits_store_no_more(name: str) -> None:
    model = ZOO[name]()
    joint = joint_of(model.model, *model.args)
    values, hints = classify(joint, min_bytes=0), hints_of(dynamic_sizes(joint.gm))
    plans = [plan(values, Options(bits=bits, min_bytes=0), hints=hints) for bits in BITS]
    stored = [sum(evaluate(entry.nbytes, hints) for entry in each.stored) for each in plans]
    assert stored == sorted(stored, reverse=True)


class Statistics(nn.Module):
    """Of which torch stores nothing: it takes the statistics of an input again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).square().mean()


@pytest.mark.parametrize("bits", [*BITS, "auto"])
def test_what_torch_stores_less_of_is_left_to_it(bits: int | str | None) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    report = fxapprox.explain(Statistics(), x, bits=bits, min_bytes=0)
    assert report.saved_bytes <= report.baseline_bytes
    assert not report.fallback or "stores less" in report.fallback


@pytest.mark.parametrize("bits", [*BITS, "auto"])
@pytest.mark.parametrize("name", ["gated_graph", "mlp_dropout"])
def test_no_graph_stores_more_than_plain(name: str, bits: int | str | None) -> None:
    model = ZOO[name]()
    report = fxapprox.explain(model.model, *model.args, bits=bits)
    assert report.saved_bytes <= report.baseline_bytes
    assert not report.fallback
