"""encode: real codecs in real graphs, and the proof that no decision is taken on an approximate value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.codecs import Group, Identity, Standard, Threshold, Zero
from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.verify import verify
from fxapprox.report.accounting import report_of
from tests.passes.graphs import Trained, joint_of, traced, training
from tools.zoo.models.blocks import blocks

LAYERS = {
    "linear": lambda: nn.Linear(32, 32),
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky": nn.LeakyReLU,
    "hardswish": nn.Hardswish,
    "elu": nn.ELU,
    "norm": lambda: nn.LayerNorm(32),
    "batchnorm": lambda: nn.BatchNorm1d(32),
    "softmax": lambda: nn.Softmax(-1),
    "dropout": nn.Dropout,
    "softplus": nn.Softplus,
}


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def squares(model: nn.Module, x: Tensor) -> Callable[..., Trained]:
    """A step on the mean of the squares of what the model returns, for any options."""
    return training(model, x, loss=lambda x: model(x).square().mean())


@settings(max_examples=6, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3), residual=st.booleans())
def test_identity_is_bitwise_and_real_codecs_keep_the_forward(names: list[str], residual: bool) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(32, 32), *(LAYERS[name]() for name in names))
    model = nn.Sequential(Residual(inner) if residual else inner, nn.Linear(32, 4))
    x = torch.randn(24, 32)
    train = squares(model, x)
    exact, same, eight = train(bits=None), train(policy=lambda _: Identity()), train(bits=8)
    assert torch.equal(exact.loss, same.loss)
    assert torch.equal(exact.gradient, same.gradient)
    assert torch.equal(eight.loss, exact.loss)
    assert eight.gradient.isfinite().all()
    assert float((eight.gradient - exact.gradient).norm()) <= 0.1 * float(exact.gradient.norm()) + 1e-7


class Block(nn.Module):
    """Two convolutions with BatchNorm; the second has no rectifier before the residual addition."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norms[1](self.second(F.relu(self.norms[0](self.first(x))))))


@pytest.mark.filterwarnings("ignore:fxapprox. what the policy chose does not fit")
@pytest.mark.parametrize("batch", [4, 5])
def test_three_bits_by_policy_train_with_the_same_forward(batch: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), Block(), Block()), torch.randn(batch, 3, 11, 11)
    train = squares(model, x)
    exact = train(bits=None)
    for codec in (Group(3), Threshold(3), Zero(3), Standard(3)):
        three = train(policy=lambda _, codec=codec: codec)
        assert torch.equal(three.loss, exact.loss)
        assert {d.storage for d in three.report.decisions} >= {f"3-bit {codec.label}"}
        assert 0 < three.error(exact) < 0.4


@pytest.mark.filterwarnings("ignore:fxapprox. what the policy chose does not fit")
def test_standardized_values_store_what_was_planned() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), Block(), Block()), torch.randn(16, 3, 12, 12)
    joint = traced(model, x)
    for bits in (8, 4, 3, 2):
        halves = joint.split(policy=lambda _, bits=bits: Standard(bits))
        report = report_of(halves, lowering="eager")
        assert sum(d.storage == f"{bits}-bit standard" for d in report.decisions) >= 2
        assert joint.step(halves).stored == report.saved_bytes


def test_verify_finds_a_decision_on_an_approximate_value() -> None:
    w = torch.randn(16, 16, requires_grad=True)
    joint = joint_of(lambda x: (F.relu(x @ w) @ w).sum(), torch.randn(8, 16))
    product = next(n for n in joint.gm.graph.nodes if n.name.startswith("mm"))
    relu = next(n for n in joint.gm.graph.nodes if n.name.startswith("relu"))
    with pytest.raises(UnsupportedGraph, match="decision") as caught:
        verify(joint.gm, {relu: relu.name})
    assert caught.value.node is not None
    assert caught.value.values == (relu.name,)
    assert product is not None


@pytest.mark.parametrize(("bits", "limit"), [(None, 1e-5), (4, 0.2), (2, 0.6)])
def test_codes_of_channels_last_images_come_back_in_their_places(bits: int | None, limit: float) -> None:
    """Codes are packed in memory's order: what is stored is a permutation of what the codec returns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
    x = torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
    model(x).square().mean().backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    assert float((squares(model, x)(bits=bits).gradient - exact).norm() / exact.norm()) < limit


class Ties(nn.Module):
    """Takes h > 0 and h >= 0 of values that are often exactly 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64, bias=False), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x * (x[:, :1] > 0))
        strictly = torch.where(h > 0, h.tanh(), h * 2)
        return self.second(torch.where(h >= 0, h.tanh(), h.sigmoid()) + strictly)


def test_a_code_carries_no_decision_that_differs_from_its_own_at_the_threshold() -> None:
    torch.manual_seed(0)
    model, x = Ties(), torch.randn(64, 32)
    train, sizes = squares(model, x), [p.numel() for p in model.parameters()]
    exact, found = train(bits=None), train(bits=8)
    for mine, theirs in zip(found.gradient.split(sizes), exact.gradient.split(sizes), strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02
    decisions = {d.value: d.storage for d in found.report.decisions if d.value in ("gt_1", "ge")}
    assert sorted(storage.startswith("in the code") for storage in decisions.values()) == [False, True]


def test_codes_of_permuted_values_come_back_in_order() -> None:
    """Masks and signs of channels-last images and transposed matrices are packed along their memory."""
    images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Hardswish())
    images, x = (value.to(memory_format=torch.channels_last) for value in (images, torch.randn(4, 3, 9, 9)))
    torch.manual_seed(3)
    images(x).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in images.parameters()])  # type: ignore[union-attr]
    assert torch.allclose(squares(images, x)(bits=None).gradient, expected, rtol=1e-4, atol=1e-6)

    w = torch.randn(16, 8, requires_grad=True)
    (expected,) = torch.autograd.grad((x[0, 0, :, :8] @ w.T).T.abs().sum(), w)
    compiled = fxapprox.compile(lambda x: (x @ w.T).T.abs().sum(), bits=None, min_bytes=0, lowering="eager")
    (found,) = torch.autograd.grad(compiled(x[0, 0, :, :8]), w)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("layer", [nn.ELU(), nn.SELU(), nn.CELU(0.5), nn.Softplus(), nn.LogSigmoid(), nn.Mish()])
def test_gradients_of_exponentials_hold_for_large_inputs(layer: nn.Module) -> None:
    torch.manual_seed(0)
    train = squares(nn.Sequential(nn.Linear(32, 64), layer, nn.Linear(64, 4)), 20 * torch.randn(64, 32))
    assert train(bits=8).error(train(bits=None)) < 0.02


def test_sines_of_many_turns_keep_their_gradients() -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 4))
    train = squares(model, torch.randn(64, 32))
    eight = train(bits=8)
    assert eight.error(train(bits=None)) < 0.02
    assert eight.report.saved_bytes < eight.report.baseline_bytes / 2


@pytest.mark.parametrize("lowering", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_outputs_that_are_parts_of_one_tensor_are_both_saved(lowering: str) -> None:
    """As a variational autoencoder's mean and deviation are; backward writes into neither."""

    def model(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, scale = (x @ w).chunk(2, dim=1)
        return torch.exp(scale) * torch.sin(mean), mean, scale

    x, w = torch.randn(64, 32) / 8, torch.randn(32, 64, requires_grad=True)
    run = fxapprox.compile(model, bits=None, lowering=lowering, strict=True)
    found, expected = run(x, w), model(x, w)
    kept = [value.clone() for value in found]
    (gradient,) = torch.autograd.grad([value.sum() for value in found], w)
    (exact,) = torch.autograd.grad([value.sum() for value in expected], w)
    torch.testing.assert_close(gradient, exact)
    assert all(torch.equal(value, before) for value, before in zip(found, kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_a_code_holds_a_normalized_value_and_its_decision(dtype: torch.dtype) -> None:
    """The convolution gives few bits, its normalization takes and gives float32, which is rounded for the rectifier."""
    torch.manual_seed(0)
    model, x = blocks(3), torch.randn(8, 8, 16, 16)
    with torch.autocast("cpu", dtype):
        train = squares(model, x)
    exact, coded = train(bits=None), train(bits=8)
    assert [d.storage for d in coded.report.decisions if d.bits is not None] == ["8-bit threshold"] * 3
    assert torch.equal(coded.loss, exact.loss)
    assert coded.error(exact) < 0.03


def test_zeros_that_rounding_made_are_on_the_side_that_forward_took() -> None:
    """Of 1e-9 float16 makes 0, which is not above 0: its gradient is 0, whatever the code decodes to."""
    x = torch.tensor([1e-9, -1e-9, 1.0, -1.0]).repeat(64, 16).requires_grad_()
    weight = torch.full((64,), 1.0, requires_grad=True)

    def model(x: Tensor, weight: Tensor) -> Tensor:
        return F.relu((x * weight).half()).float().square()

    run = fxapprox.compile(model, bits=4, lowering="eager", min_bytes=0, strict=True)
    run(x, weight).sum().backward()
    found = x.grad
    assert found is not None
    assert (found[:, [0, 1, 3]] == 0).all()
    assert (found[:, 2] > 0).all()
