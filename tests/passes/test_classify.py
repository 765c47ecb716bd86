"""classify: the class, reach and reason of every kind of value in the table of docs/design.md."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxapprox.ir.records import Class, Reach, Use
from fxapprox.passes.classify import classify
from tests.passes.graphs import LAYERS, classified, of_op, written


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


W = weight(16, 16)
X = torch.randn(32, 16)


def test_inputs_are_free_and_linear_values_linear() -> None:
    values = classified(lambda x: (x @ W @ W).sum(), X)
    assert all(a.kind is Class.FREE for a in values.values() if a.op == "placeholder")
    first = of_op(values, "aten.mm")[0]
    assert first.kind is Class.LINEAR
    assert first.reach is Reach.TERMINAL
    assert first.reason


@pytest.mark.parametrize(
    ("function", "kind"),
    [(torch.tanh, Class.SMOOTH), (torch.sigmoid, Class.SMOOTH), (F.gelu, Class.SMOOTH), (F.silu, Class.SMOOTH),
     (torch.sin, Class.SENSITIVE), (torch.log, Class.SENSITIVE), (torch.exp, Class.LINEAR),
     (torch.rsqrt, Class.SENSITIVE)],
)  # fmt: skip
def test_pointwise_functions(function, kind: Class) -> None:
    values = classified(lambda x: (function(x @ W) @ W).sum(), X)
    product = of_op(values, "aten.mm")[0]
    output = [a for a in values.values() if a.demand is not None and not a.free]
    # exp needs only its own output again, everything else its input
    wanted = output[0] if function is torch.exp else product
    assert wanted.kind in (kind, Class.SMOOTH if kind is Class.LINEAR else kind)


def test_softmax_and_its_logits() -> None:
    values = classified(lambda x: (torch.softmax(x @ W, -1) @ W).sum(), X)
    assert of_op(values, "aten.div")[0].kind is Class.SOFTMAX
    target = torch.zeros(32, dtype=torch.long)
    values = classified(lambda x: F.cross_entropy(x @ W, target), X)
    assert of_op(values, "aten.exp")[-1].kind is Class.SOFTMAX
    assert of_op(values, "aten.mm")[0].kind is Class.LINEAR  # no exponential is taken of a coded score


def test_logits_that_are_computed_again_are_so_exactly() -> None:
    """What normalized them is forward's: beside it an error in a logit is one of the gradient, also where that is 0."""
    head = torch.randn(8, 16 * 8, requires_grad=True)
    labels = torch.zeros(32, dtype=torch.long)  # each token's loss: of one loss, forward makes the gradients
    values = classified(lambda x: F.cross_entropy((x @ W)[:, :8].tanh() @ head, labels, reduction="none"), X)
    assert of_op(values, "aten.mm")[-1].recomputable
    assert all(operand.exact for each in of_op(values, "aten.exp") for operand in each.operands)


def test_attention_weights_under_a_mask_are_a_softmax() -> None:
    def attend(x: Tensor) -> Tensor:
        q = (x @ W).view(2, 16, 2, 8).transpose(1, 2)
        bias = q @ q.transpose(-1, -2)  # needs a gradient: no fused kernel
        return F.scaled_dot_product_attention(q, q, q, attn_mask=bias).sum()

    (weights,) = (a for a in of_op(classified(attend, X), "aten.where") if a.demand is not None)
    assert weights.kind is Class.SOFTMAX
    assert weights.weights


def test_attention_operands() -> None:
    def attend(x: Tensor) -> Tensor:
        q = (x @ W).view(2, 16, 2, 8).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, is_causal=True).sum()

    kinds = {a.kind for a in classified(attend, X).values() if a.demand is not None and not a.free}
    assert Class.ATTENTION in kinds


def test_masks_and_statistics() -> None:
    values = classified(lambda x: F.layer_norm(F.relu(x @ W), (16,)).square().sum(), X)
    assert all(a.kind is Class.DISCRETE for a in values.values() if a.dtype is torch.bool)
    statistics = [a for a in of_op(values, "getitem") if a.shape == (32, 1)]
    assert all(a.kind is Class.STATISTIC for a in statistics)


def test_values_that_no_parameter_moves_are_never_approximate() -> None:
    def masked(x: Tensor) -> Tensor:
        bias = torch.where(torch.arange(16) > 8, float("-inf"), 0.0) * 1.0
        return (torch.softmax(x @ W + bias, -1) @ W).sum()

    values = classified(masked, X)
    assert not any(a.approximable for a in values.values() if a.shape == (16,))


def test_products_of_experts_are_linear_in_rows_and_weights() -> None:
    experts = torch.randn(4, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([8, 16, 24, 32], dtype=torch.int32)

    def mixed(x: Tensor, ends: Tensor) -> Tensor:
        rows = (x @ W).bfloat16()
        return F.grouped_mm(torch.tanh(rows), experts, offs=ends).float().sum()

    values = classified(mixed, X, ends)
    assert of_op(values, "aten.tanh")[0].kind is Class.SMOOTH
    assert any(a.reason == "linear in aten._grouped_mm" for a in values.values())


@pytest.mark.parametrize(("operator", "kind"), [("mul.Tensor", Class.LINEAR), ("igamma", Class.SENSITIVE)])
def test_an_operator_of_backward_says_what_its_operand_is(operator: str, kind: Class) -> None:
    """A product in place of tanh's gradient; nobody has described igamma."""
    joint = written(LAYERS.replace("tanh_backward", operator))
    values = {a.name: a for a in classify(joint, min_bytes=0)}
    assert values["y"].kind is kind
    assert values["h"].demand is None


def test_an_unknown_operator_is_sensitive() -> None:
    values = classified(lambda x: torch.cumprod(x @ W, 0).sum(), X)
    product = of_op(values, "aten.mm")[0]
    assert product.kind is Class.SENSITIVE
    assert not product.approximable


def test_a_rectifier_can_ride_in_the_code_of_a_normalized_value() -> None:
    gamma, beta, w = weight(8), weight(8), weight(8, 8, 3, 3)

    def block(x: Tensor) -> Tensor:
        h = F.batch_norm(F.conv2d(x, w), None, None, gamma, beta, training=True)
        return F.conv2d(F.relu(h), w).sum()

    values = classified(block, torch.randn(4, 8, 12, 12))
    mask = of_op(values, "aten.le")[0]
    assert mask.embedded is not None
    root = values[mask.embedded.root]
    assert root.op == "aten.convolution"
    assert mask.embedded.mean is not None
    assert [step for step, _ in mask.embedded.steps] == ["sub", "mul", "mul", "add"]


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_a_quotient_without_its_remainder_is_a_decision(mode: str) -> None:
    values = classified(lambda x: (torch.div(x @ W, 0.5, rounding_mode=mode) * (x @ W)).sum(), X)
    (quotient,) = of_op(values, "aten.div")
    assert quotient.kind is Class.DISCRETE
    assert not quotient.recomputable


@pytest.mark.parametrize("filling", [-1e9, torch.finfo(torch.float32).min])
def test_what_a_mask_fills_in_is_not_coded(filling: float) -> None:
    hidden = torch.rand(32, 16) > 0.5
    filled = classified(lambda x: torch.tanh((x @ W).masked_fill(hidden, filling)).sum(), X)
    added = classified(lambda x: torch.tanh(x @ W + torch.where(hidden, filling, 0.0)).sum(), X)
    scaled = classified(lambda x: torch.tanh(x @ W + hidden.float() * filling).sum(), X)
    for values, op in ((filled, "aten.where"), (added, "aten.add"), (scaled, "aten.add")):
        (sum_,) = (a for a in of_op(values, op) if a.approximable)
        assert "filling" in sum_.kept
        assert not of_op(values, "aten.mm")[0].kept
        assert not of_op(values, "aten.tanh")[0].kept


def test_exponentials_are_not_coded_unless_they_are_bounded() -> None:
    assert all(a.kept for a in of_op(classified(lambda x: (torch.exp(x @ W) * 2).square().sum(), X), "aten.exp"))
    bounded = classified(lambda x: torch.exp(-(x @ W).square()).square().sum(), X)
    assert not any(a.kept for a in of_op(bounded, "aten.exp"))
    shifted = classified(lambda x: torch.softmax(x @ W, -1).square().sum(), X)
    assert not any(a.kept for op in ("aten.mm", "aten.exp", "aten.div") for a in of_op(shifted, op))
    silu = classified(lambda x: F.silu(x @ W).square().sum(), X)
    assert not any(a.kept for a in of_op(silu, "aten.div") if a.approximable)


def test_source_lines_and_decisions() -> None:
    values = classified(lambda x: F.relu(x @ W).sum(), X)
    relu = of_op(values, "aten.relu")[0]
    assert "test_classify.py" in relu.source
    assert relu.operands[0].use is Use.DECISION
