"""plan: the stored set of small graphs, and what it never does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxapprox
from fxapprox.codecs import Exact, Group, Mask, Standard, Threshold, Zero
from fxapprox.ir.records import Class
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.plan import plan
from tests.passes.graphs import LAYERS, classified, of_op, written

W = torch.randn(64, 64, requires_grad=True)
X = torch.randn(128, 64)
KERNEL, GAMMA = torch.randn(8, 8, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)


def planned(model, *args: Tensor, **options):
    return plan(tuple(classified(model, *args).values()), Options(min_bytes=0, **options))


def norm_block(x: Tensor) -> Tensor:
    w, gamma = KERNEL, GAMMA
    h = F.batch_norm(F.conv2d(x, w), None, None, gamma, gamma, training=True)
    return F.conv2d(F.relu(h), w).square().sum()


def large(stored, smallest: int = 1000):
    return [entry for entry in stored.stored if entry.nbytes >= smallest]


def test_one_code_for_each_conv_norm_relu() -> None:
    w, gamma = torch.randn(8, 8, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        h = F.batch_norm(F.conv2d(x, w), None, None, gamma, gamma, training=True)
        return F.conv2d(F.relu(h), w).sum()

    (entry,) = large(planned(block, torch.randn(8, 8, 12, 12), bits=4))
    assert entry.codec == Threshold(4)
    assert len(entry.predicates) == 1


def residual_block(x: Tensor, *, groups: int | None = None) -> Tensor:
    """A convolution, a normalization without a decision after it, and a residual addition."""
    w, gamma = KERNEL, GAMMA
    h = F.conv2d(x, w, padding=1)
    h = F.group_norm(h, groups, gamma) if groups else F.batch_norm(h, None, None, gamma, gamma, training=True)
    return F.conv2d(F.relu(h + x), w, padding=1).square().sum()


def test_the_input_of_a_norm_over_the_batch_needs_no_group_metadata() -> None:
    x = torch.randn(8, 8, 12, 12)
    codes = [entry for entry in planned(residual_block, x, bits=4).stored if entry.codec == Standard(4)]
    (entry,) = codes
    assert entry.nbytes == x.numel() // 2 + 8 * 2
    assert entry.moments is not None
    assert entry.moments.mean is None  # what is stored is the input less its mean
    unbiased = planned(residual_block, x, bits=4, rounding="stochastic").stored
    assert not any(isinstance(entry.codec, Standard) for entry in unbiased)


def test_statistics_of_one_image_or_of_few_elements_give_no_code_its_range() -> None:
    for model, x in (
        (lambda x: residual_block(x, groups=4), torch.randn(8, 8, 12, 12)),
        (residual_block, torch.randn(2, 8, 1, 3)),
        (lambda x: F.layer_norm(x @ W, (64,)).tanh().sum(), X),
    ):
        assert not any(isinstance(entry.codec, Standard) for entry in planned(model, x, bits=4).stored)


def test_a_rectifier_alone_gets_the_zero_codec() -> None:
    (entry,) = large(planned(lambda x: (F.relu(x @ W) @ W).sum(), X, bits=4))
    assert entry.codec == Zero(4)


def test_exact_mode_packs_masks_and_keeps_floats() -> None:
    def gated(x: Tensor) -> Tensor:  # its mask is of a sum, which backward would round once more
        return (F.leaky_relu(x @ W + 1, 0.1) @ W).sum()

    codecs = {type(entry.codec) for entry in planned(gated, X, bits=None).stored}
    assert codecs == {Exact, Mask}


def test_a_mask_of_what_is_stored_exactly_is_taken_again() -> None:
    found = planned(lambda x: (F.relu(x @ W) @ W).sum(), X, bits=None)
    assert {type(entry.codec) for entry in found.stored} == {Exact}
    assert any(name.startswith("le") for name in found.recomputed)


@pytest.mark.parametrize(("bits", "expected"), [(8, 8), (4, 4), (2, 4)])
def test_smooth_values_get_at_least_four_bits(bits: int, expected: int) -> None:
    (entry,) = large(planned(lambda x: (F.gelu(x @ W) @ W).sum(), X, bits=bits))
    assert entry.codec == Group(expected)


def test_softmax_gets_eight_bits_and_most_levels_for_small_weights() -> None:
    (entry,) = large(planned(lambda x: (torch.softmax(x @ W, -1) @ W).sum(), X, bits=2))
    assert entry.codec == Group(8, skewed=True)


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_attention_weights_get_most_levels_near_zero(scale: float) -> None:
    def attend(x: Tensor) -> Tensor:
        return (torch.softmax((x @ W) @ (x @ W.t()).t() * scale, -1) @ (x @ W)).square().sum()

    assert any(isinstance(e.codec, Group) and e.codec.skewed for e in planned(attend, X, bits=8).stored)
    unbiased = [e.codec for e in planned(attend, X, bits=8, rounding="stochastic").stored]
    assert not any(isinstance(codec, Group) and codec.skewed for codec in unbiased)


def test_the_improbable_counts_in_a_cross_entropy() -> None:
    values = classified(lambda x: F.cross_entropy(x @ W, torch.arange(len(x)) % W.shape[1]), X)
    assert any(value.weights and value.kind is Class.SOFTMAX for value in of_op(values, "aten.exp"))


def test_dropout_masks_are_stored_as_bits_never_drawn_again() -> None:
    chosen = planned(lambda x: (F.dropout(x @ W, 0.5) @ W).sum(), X, bits=4)
    assert any(entry.codec == Mask() for entry in chosen.stored)


def test_large_rounding_option_reaches_the_codec() -> None:
    (entry,) = large(planned(lambda x: ((x @ W) @ W).sum(), X, bits=4, rounding="stochastic"))
    assert entry.codec == Group(4, "stochastic")


def test_one_value_is_stored_for_all_that_read_it() -> None:
    """A product, and tanh's own gradient, which takes its result: not the operand of tanh beside it."""
    joint = written(LAYERS.replace("tanh_backward", "mul.Tensor"))
    stored = plan(classify(joint, min_bytes=0), Options(bits=8, min_bytes=0)).stored
    assert [(entry.name, entry.codec.bits) for entry in stored] == [("y", 8)]


def test_everything_needed_is_stored_free_or_recomputed() -> None:
    values = classified(lambda x: (F.silu(x @ W) @ W).square().sum(), X)
    chosen = plan(tuple(values.values()), Options(min_bytes=0))
    saved = set(chosen.saved_names)
    for name in chosen.recomputed:
        for operand in values[name].operands:
            assert operand.name in saved or operand.name in chosen.recomputed or values[operand.name].free


def test_bits_by_module_path() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU())
    model.append(torch.nn.Linear(64, 4))
    report = fxapprox.explain(model, X, bits={"[01]": 4, "*": None}, min_bytes=0)
    storage = {d.module: d.storage for d in report.decisions if d.bytes_after > 1000}
    assert storage["0"] == "4-bit group"
    assert storage["2"] == "exact"


def test_logits_over_a_vocabulary_are_computed_again() -> None:
    head, labels = torch.randn(64, 1024, requires_grad=True), torch.zeros(128, dtype=torch.int64)
    small = planned(lambda x: F.cross_entropy((x @ W).tanh() @ head, labels, reduction="none"), X, bits=4)
    assert [(entry.codec, entry.nbytes) for entry in large(small)] == [(Exact(), 4 * X.numel())]  # the hidden state


def test_a_first_layer_is_not_computed_again() -> None:
    wide = torch.randn(64, 1024, requires_grad=True)
    stored = planned(lambda x: F.gelu(x @ wide).sum(), X, bits=8)
    assert len(large(stored)) == 1


@pytest.mark.filterwarnings("ignore:fxapprox. what the policy chose does not fit")  # tests/frontend/test_backend.py
@pytest.mark.parametrize("codec", [Threshold(4), Zero(4), Standard(4), Group(3)])
def test_a_codec_that_does_not_fit_the_value_gives_its_bits_to_one_that_does(codec) -> None:
    for model, x in ((norm_block, torch.randn(8, 8, 12, 12)), (residual_block, torch.randn(8, 8, 12, 12))):
        codes = [
            e.codec for e in planned(model, x, bits=8, policy=lambda _: codec).stored if not isinstance(e.codec, Exact)
        ]
        assert codec.bits in {used.bits for used in codes}
        assert not any(isinstance(used, Zero) for used in codes if codec == Group(3))
