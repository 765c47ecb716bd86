"""encode: real codecs in real graphs, and the proof that no decision is taken on an approximate value."""

from __future__ import annotations

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
from fxapprox.measure.memory import stored_bytes
from tests.passes.graphs import joint_of
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


def gradients(model: nn.Module, x: Tensor, **options) -> tuple[Tensor, list[Tensor], list[fxapprox.Report]]:
    torch._dynamo.reset()
    model.zero_grad()
    torch.manual_seed(3)
    compiled = fxapprox.compile(model, lowering="eager", min_bytes=0, strict=True, **options)
    loss = compiled(x).square().mean()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()], list(fxapprox.reports(compiled))  # type: ignore[union-attr]


@settings(max_examples=6, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3), residual=st.booleans())
def test_identity_is_bitwise_and_real_codecs_keep_the_forward(names: list[str], residual: bool) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(32, 32), *(LAYERS[name]() for name in names))
    model = nn.Sequential(Residual(inner) if residual else inner, nn.Linear(32, 4))
    x = torch.randn(24, 32)
    exact = gradients(model, x, bits=None)
    same = gradients(model, x, policy=lambda _: Identity())
    assert torch.equal(exact[0], same[0])
    assert all(torch.equal(a, b) for a, b in zip(exact[1], same[1], strict=True))
    eight = gradients(model, x, bits=8)
    assert torch.equal(eight[0], exact[0])
    assert all(g.isfinite().all() for g in eight[1])
    total = torch.cat([g.flatten() for g in exact[1]])
    error = torch.cat([g.flatten() for g in eight[1]]) - total
    assert float(error.norm()) <= 0.1 * float(total.norm()) + 1e-7


class Block(nn.Module):
    """Two convolutions with BatchNorm; the second has no rectifier before the residual addition."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norms[1](self.second(F.relu(self.norms[0](self.first(x))))))


@pytest.mark.filterwarnings("ignore:fxapprox. what the policy chose does not fit")
@pytest.mark.parametrize("codec", [Group(3), Threshold(3), Zero(3), Standard(3)], ids=lambda c: c.label)
@pytest.mark.parametrize("batch", [4, 5])
def test_three_bits_by_policy_train_with_the_same_forward(codec, batch: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), Block(), Block()), torch.randn(batch, 3, 11, 11)
    exact = gradients(model, x, bits=None)
    three = gradients(model, x, policy=lambda _: codec)
    assert torch.equal(three[0], exact[0])
    assert {d.storage for d in three[2][0].decisions} >= {f"3-bit {codec.label}"}
    total = torch.cat([g.flatten() for g in exact[1]])
    error = torch.cat([g.flatten() for g in three[1]]) - total
    assert 0 < float(error.norm()) < 0.4 * float(total.norm())


@pytest.mark.filterwarnings("ignore:fxapprox. what the policy chose does not fit")
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_standardized_values_store_what_was_planned(bits: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), Block(), Block()), torch.randn(16, 3, 12, 12)
    compiled = fxapprox.compile(model, lowering="eager", min_bytes=0, strict=True, policy=lambda _: Standard(bits))
    scores = compiled(x)
    (report,) = fxapprox.reports(compiled)
    held = stored_bytes(scores, exclude=[*model.parameters(), *model.buffers(), x])
    assert sum(d.storage == f"{bits}-bit standard" for d in report.decisions) >= 2
    assert held == report.saved_bytes


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
    _, found, _ = gradients(model, x, bits=bits)
    assert float((torch.cat([g.flatten() for g in found]) - exact).norm() / exact.norm()) < limit


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
    _, exact, _ = gradients(model, x, bits=None)
    _, found, (report,) = gradients(model, x, bits=8)
    for mine, theirs in zip(found, exact, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02
    decisions = {d.value: d.storage for d in report.decisions if d.value in ("gt_1", "ge")}
    assert sorted(storage.startswith("in the code") for storage in decisions.values()) == [False, True]


def test_codes_of_permuted_values_come_back_in_order() -> None:
    """Masks and signs of channels-last images and transposed matrices are packed along their memory."""
    images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Hardswish())
    images, x = (value.to(memory_format=torch.channels_last) for value in (images, torch.randn(4, 3, 9, 9)))
    torch.manual_seed(3)
    images(x).square().mean().backward()
    expected = [p.grad.clone() for p in images.parameters()]  # type: ignore[union-attr]
    found = gradients(images, x, bits=None)[1]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found, expected, strict=True))

    w = torch.randn(16, 8, requires_grad=True)
    (expected,) = torch.autograd.grad((x[0, 0, :, :8] @ w.T).T.abs().sum(), w)
    compiled = fxapprox.compile(lambda x: (x @ w.T).T.abs().sum(), bits=None, min_bytes=0, lowering="eager")
    (found,) = torch.autograd.grad(compiled(x[0, 0, :, :8]), w)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("layer", [nn.ELU(), nn.SELU(), nn.CELU(0.5), nn.Softplus(), nn.LogSigmoid(), nn.Mish()])
def test_gradients_of_exponentials_hold_for_large_inputs(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 64), layer, nn.Linear(64, 4)), 20 * torch.randn(64, 32)
    exact, eight = gradients(model, x, bits=None), gradients(model, x, bits=8)
    total, found = (torch.cat([g.flatten() for g in way[1]]) for way in (exact, eight))
    assert float((found - total).norm()) < 0.02 * float(total.norm())


def test_sines_of_many_turns_keep_their_gradients() -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * x)

    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(32, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 4)),
        torch.randn(64, 32),
    )
    exact, eight = gradients(model, x, bits=None), gradients(model, x, bits=8)
    total, found = (torch.cat([g.flatten() for g in way[1]]) for way in (exact, eight))
    assert float((found - total).norm()) < 0.02 * float(total.norm())
    assert eight[2][0].saved_bytes < eight[2][0].baseline_bytes / 2


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
        exact = gradients(model, x, bits=None)
        coded = gradients(model, x, bits=8)
    (report,) = coded[2]
    assert [d.storage for d in report.decisions if d.bits is not None] == ["8-bit threshold"] * 3
    assert torch.equal(coded[0], exact[0])
    total = torch.cat([g.flatten() for g in exact[1]])
    error = torch.cat([g.flatten() for g in coded[1]]) - total
    assert float(error.norm()) < 0.03 * float(total.norm())


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
