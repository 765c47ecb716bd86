"""Fewer bits never store more than more bits, no bits more than exact mode, and exact mode no more than torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import fxapprox
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.plan import plan
from fxapprox.sizes import evaluate, hints_of
from fxapprox.torch_adapter import dynamic_sizes
from tests.passes.graphs import joint_of
from tools.zoo.models.zoo import ZOO

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


# torch stores nothing of these: it takes statistics and masks again, of sums of the input that it makes anew
FROM_INPUTS = {
    "statistics": lambda x: F.group_norm(x, 2),
    "similarity": lambda x: F.cosine_similarity(x, 2 * x, -1),
    "instances": lambda x: F.instance_norm(x[None]),
    "mask": lambda x: torch.relu(x + 1).sinh(),
    "several masks": lambda x: F.leaky_relu(torch.relu(x * 3 + 1) - 0.5).cumprod(0),
}


@pytest.mark.parametrize("bits", [*BITS, "auto"])
@pytest.mark.parametrize("name", FROM_INPUTS)
def test_what_torch_recomputes_is_recomputed(name: str, bits: int | str | None) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    report = fxapprox.explain(FROM_INPUTS[name], x, bits=bits, min_bytes=0, strict=True)
    assert report.saved_bytes <= report.baseline_bytes
    assert not report.fallback


@pytest.mark.parametrize("bits", [*BITS, "auto"])
@pytest.mark.parametrize("name", ["gated_graph", "mlp_dropout"])
def test_no_graph_stores_more_than_plain(name: str, bits: int | str | None) -> None:
    model = ZOO[name]()
    report = fxapprox.explain(model.model, *model.args, bits=bits)
    assert report.saved_bytes <= report.baseline_bytes
    assert not report.fallback
