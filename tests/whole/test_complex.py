"""Complex values: their real and imaginary parts are stored as reals are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.codecs import Cast, Codec, Complex, Group, Like

ROWS, WIDTH = 16, 96
pytestmark = pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")


class Spectral(nn.Module):
    """A product in the frequency domain, as in Fourier neural operators."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.mix = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), mix
        self.weight = nn.Parameter(torch.randn(WIDTH // 2 + 1, WIDTH // 2 + 1, dtype=torch.complex64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.first(x), dim=-1)
        return self.second(torch.fft.irfft(self.mix(spectrum, self.weight), n=WIDTH, dim=-1)).square().mean()


def product(spectrum: Tensor, weight: Tensor) -> Tensor:
    return spectrum @ weight


def filtered(spectrum: Tensor, weight: Tensor) -> Tensor:
    return spectrum * weight.diagonal()


def correlated(spectrum: Tensor, weight: Tensor) -> Tensor:
    return (spectrum.conj() * spectrum @ weight) / WIDTH


def in_parts(spectrum: Tensor, weight: Tensor) -> Tensor:
    parts = torch.view_as_real(spectrum)
    return torch.complex(parts[..., 1], parts[..., 0]) @ weight


def phases(spectrum: Tensor, weight: Tensor) -> Tensor:
    """Absolute values and angles divide by the absolute value: exact."""
    return torch.polar(spectrum.abs().log1p(), spectrum.angle()) @ weight


def gradients(model: nn.Module, run: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    model.zero_grad()
    run(x).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mix", [product, correlated, in_parts, phases])
def test_gradients(mix: Callable[[Tensor, Tensor], Tensor]) -> None:
    check(mix, "eager")


@pytest.mark.inductor
def test_gradients_under_inductor() -> None:
    """A part of irfft's gradient is doubled in place: Inductor let others read it before, and gave half of it."""
    check(product, "inductor")


def check(mix: Callable[[Tensor, Tensor], Tensor], lowering: str) -> None:
    torch.compiler.reset()
    model, x = Spectral(mix), torch.randn(ROWS, WIDTH)
    plain = gradients(model, model, x)
    for bits, limit in ((None, 1e-4), (8, 0.02), (4, 0.25)):
        run = fxapprox.compile(model, bits=bits, lowering=lowering, min_bytes=0, strict=True)
        for found, expected in zip(gradients(model, run, x), plain, strict=True):
            assert (found - expected).norm() <= limit * expected.norm(), bits


@pytest.mark.parametrize("mix", [product, filtered, correlated])
def test_a_spectrum_is_stored_in_bits(mix: Callable[[Tensor, Tensor], Tensor]) -> None:
    report = fxapprox.explain(Spectral(mix), torch.randn(ROWS, WIDTH), bits=4, min_bytes=0)
    stored = [d.how.codec for d in report.decisions if d.how.codec is not None]
    assert Complex(4) in stored
    assert report.saved_bytes < 0.4 * report.baseline_bytes


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_codec(bits: int, dtype: torch.dtype) -> None:
    codec = Complex(bits)
    for x in (torch.randn(5, 70, dtype=dtype), torch.randn(70, 5, dtype=dtype).t().conj(), torch.randn(0, dtype=dtype)):
        parts, like = codec.encode(x), Like.of(x)
        found = codec.decode(parts, like)
        assert (found.dtype, found.shape) == (x.dtype, x.shape)
        assert sum(part.nbytes for part in parts) == codec.nbytes(x.shape, x.dtype)
        assert bool(((found - x).abs() <= codec.bound(parts, like)).all())
    assert math.isnan(codec.decode(codec.encode(torch.tensor([complex(math.nan, 1)])), Like.of(x.new_zeros(1))).real)


@pytest.mark.parametrize("codec", [Group(4), Cast()])
def test_a_policy_with_a_codec_of_real_numbers_is_told(codec: Codec) -> None:
    with pytest.warns(UserWarning, match="complex group, not as .*: it lacks real numbers"):
        fxapprox.explain(Spectral(product), torch.randn(ROWS, WIDTH), min_bytes=0, policy=lambda value: codec)
