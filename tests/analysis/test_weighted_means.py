"""Means weighed by hand: a weight's gradient is what its value differs from the mean, errors meet all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from tests.gradient_cases import require_near, scalar

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: F.elu(x) + 1,
    "sigmoid": torch.sigmoid,
    "squared rectifier": lambda x: x.relu().square(),
    "exponential": lambda x: torch.exp(3 * x),
}


def scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).tril()
    return weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)


def prefixes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sums = (k[..., :, None] * v[..., None, :]).cumsum(2)
    return (q[..., None, :] @ sums)[..., 0, :] / ((q * k.cumsum(2)).sum(-1, keepdim=True) + 1e-6)


def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.mT @ v) / ((q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + 1e-6)


def gated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(q) * (k * v).cumsum(2) / (k.cumsum(2) + 1e-6)


class Attention(nn.Module):
    def __init__(self, mean: Callable[[Tensor, Tensor, Tensor], Tensor], features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
        self.mean, self.features = mean, features

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (4, 16)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mean = self.mean(self.features(q), self.features(k), v)
        return scalar(torch.tanh(x + self.o(mean.transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("mean", [scores, prefixes, whole, gated])
def test_linear_attention(mean: Callable[..., Tensor], features: str) -> None:
    require_near(Attention(mean, FEATURES[features]), torch.randn(2, 32, 64))


def test_values_get_8_bits() -> None:
    report = fxapprox.explain(Attention(whole, FEATURES["elu"]), torch.randn(2, 32, 64), bits=4)
    assert {d.bits for d in report.decisions if "attention" in d.kind.value and d.bytes_after} == {8}


def test_a_norm_is_none() -> None:
    """Both sides of the fraction bar have all factors."""
    report = fxapprox.explain(
        Attention(lambda q, k, v: F.cosine_similarity(q, v, dim=-1)[..., None] * k, torch.tanh), torch.randn(2, 32, 64),
        bits=4,
    )  # fmt: skip
    assert not [d.value for d in report.decisions if d.bits == 8]
