"""How far the gradients are from the exact ones, on the networks the design measures itself by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.codecs import Identity
from tools.zoo import models
from tools.zoo.models import Case
from tools.zoo.training import relative, step, unrewritten


def spread_norms(case: Case) -> Case:
    """BatchNorm weights uniform in 0.5..1.5, biases normal with deviation 0.3."""
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return case


def compiled(case: Case, **options) -> nn.Module:
    torch._dynamo.reset()
    return fxapprox.compile(case.model, lowering="eager", strict=True, **options)


@pytest.mark.parametrize("name", ["demo_resnet", "gpt", "unet", "mlp_dropout"])
def test_identity_codec_gives_the_gradients_of_the_unrewritten_partition(name: str, one_thread: None) -> None:
    case = getattr(models, name)()
    plain = step(case, unrewritten(case.model))
    same = step(case, compiled(case, policy=lambda _: Identity()))
    assert torch.equal(plain[0], same[0])
    assert torch.equal(plain[1], same[1])


@pytest.mark.parametrize("name", ["demo_resnet", "gpt", "unet", "mlp_dropout"])
def test_forward_is_exact_at_any_number_of_bits(name: str) -> None:
    case = getattr(models, name)()
    plain = step(case, unrewritten(case.model))
    for bits in (None, 8, 2):
        assert torch.equal(step(case, compiled(case, bits=bits))[0], plain[0])


@pytest.mark.inductor
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("demo_resnet", "unet", "gpt")), "mlp_dropout"]
)
def test_the_first_loss_has_the_bits_of_torch_compile(name: str) -> None:
    case = getattr(models, name)()
    plain = step(case, torch.compile(case.model))
    torch.compiler.reset()
    four = step(case, fxapprox.compile(case.model, bits=4, strict=True))
    assert torch.equal(four[0], plain[0])
    assert four[1].isfinite().all()


@pytest.mark.parametrize(("bits", "limit", "less"), [(8, 0.01, 6.5), (4, 0.11, 12.0)])
def test_resnet_20(bits: int, limit: float, less: float) -> None:
    case = spread_norms(models.demo_resnet(depth=20, batch=64))
    exact = step(case, unrewritten(case.model))
    run = compiled(case, bits=bits)
    found = step(case, run)
    (report,) = fxapprox.reports(run)
    assert relative(found[1], exact[1]) < limit
    assert report.ratio > less


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "limit"), [(8, 0.013), (4, 0.13)])
def test_the_error_does_not_grow_with_depth(bits: int, limit: float) -> None:
    case = spread_norms(models.demo_resnet(depth=110, batch=16))
    exact = step(case, unrewritten(case.model))
    assert relative(step(case, compiled(case, bits=bits))[1], exact[1]) < limit


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.007), (4, 0.105)])
def test_small_gpt(bits: int, limit: float) -> None:
    case = models.gpt(layers=4, width=128, sequence=64, vocab=256)
    exact = step(case, unrewritten(case.model))
    assert relative(step(case, compiled(case, bits=bits))[1], exact[1]) < limit


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_language_models_of_transformers(name: str) -> None:
    """Additive attention masks and dropout: finite gradients, close to the exact ones with the same random masks."""
    case = getattr(models, name)()
    exact = step(case, unrewritten(case.model))
    found = step(case, compiled(case, bits=8))
    assert found[1].isfinite().all()
    assert relative(found[1], exact[1]) < 0.02
