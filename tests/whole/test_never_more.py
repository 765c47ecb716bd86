"""Fewer bits never store more than more bits, no bits more than exact mode, and exact mode no more than torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fxapprox.options import Options
from fxapprox.passes.pipeline import stored_bytes
from fxapprox.passes.plan import plan
from fxapprox.passes.rewrite import Rewrite
from fxapprox.report.accounting import report_of
from tests.passes.graphs import prepared, traced
from tools.zoo.models.zoo import ZOO

BITS = (None, 8, 4, 2)
# rectifiers behind norms and views, learned slopes, edges, losses over distances and vocabularies, recurrence, routing
MODELS = "volume_unet gated_graph triplet loss_and_logits mlp_dropout gin transformer routed_experts".split()


@pytest.mark.parametrize("name", MODELS)
def test_plans_of_fewer_bits_store_no_more(name: str) -> None:
    model = ZOO[name]()
    state = prepared(model.model, *model.args)
    plans = [plan(state.activations, Options(bits=bits, min_bytes=0), hints=state.hints) for bits in BITS]
    stored = [stored_bytes(each, state.hints) for each in plans]
    assert stored == sorted(stored, reverse=True)


# torch stores nothing of these: it takes statistics and masks again, of sums of the input that it makes anew
FROM_INPUTS = {
    "statistics": lambda x: F.group_norm(x, 2),
    "similarity": lambda x: F.cosine_similarity(x, 2 * x, -1),
    "instances": lambda x: F.instance_norm(x[None]),
    "mask": lambda x: torch.relu(x + 1).sinh(),
    "several masks": lambda x: F.leaky_relu(torch.relu(x * 3 + 1) - 0.5).cumprod(0),
}


@pytest.mark.parametrize("name", FROM_INPUTS)
def test_what_torch_recomputes_is_recomputed(name: str) -> None:
    joint = traced(FROM_INPUTS[name], torch.randn(3, 8, requires_grad=True))
    for bits in (*BITS, "auto"):
        require_no_more(joint.split(bits=bits, lowering="inductor"))


@pytest.mark.parametrize("name", ["gated_graph", "mlp_dropout"])
def test_no_graph_stores_more_than_plain(name: str) -> None:
    model = ZOO[name]()
    joint = traced(model.model, *model.args)
    for bits in (*BITS, "auto"):
        require_no_more(joint.split(bits=bits, lowering="inductor", min_bytes=4096))


def require_no_more(halves: Rewrite) -> None:
    """Fails where a graph stores more than plain torch.compile, or is left to it."""
    report = report_of(halves)
    assert report.saved_bytes <= report.baseline_bytes
    assert not report.fallback
