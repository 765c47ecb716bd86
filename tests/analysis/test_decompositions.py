"""Eigenvectors, factorizations, inverses, solutions: gradients are divided by gaps, or solved with once more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.linalg import cholesky, eigh, eigvalsh, inv, matrix_exp, pinv, qr, slogdet, solve, solve_triangular, svd

import fxapprox
from tests.gradient_cases import require_near, scalar

SMALL = 1e-3 * torch.eye(32)


def covariance(h: Tensor) -> Tensor:
    h = h - h.mean(0)
    return h.mT @ h / len(h) + SMALL


def whitened(h: Tensor) -> Tensor:
    values, vectors = eigh(covariance(h))
    return h @ (vectors * values.rsqrt()) @ vectors.mT


def regressed(h: Tensor) -> Tensor:
    """Kernel ridge regression: the matrix is made of distances."""
    kernel = torch.exp(-(h[:, None] - h).square().sum(-1) / 4) + 1e-2 * torch.eye(len(h))
    return h + kernel @ solve(kernel, torch.sin(torch.arange(len(h) * 32.0)).view(-1, 32))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "whitening": whitened,
    "principal components": lambda h: h @ eigh(covariance(h))[1],
    "eigenvalues": lambda h: h * eigvalsh(covariance(h)).log(),
    "triangular": lambda h: solve_triangular(cholesky(covariance(h)), h.mT, upper=False).mT,
    "inverse": lambda h: h @ inv(covariance(h)),
    "solution": lambda h: solve(covariance(h), h.mT).mT,
    "orthogonal": lambda h: 10 * qr(h)[0],
    "polar": lambda h: (lambda u, _, v: 10 * u @ v)(*svd(h, full_matrices=False)),
    "pseudo-inverse": lambda h: 10 * pinv(h).mT,
    "exponential": lambda h: h @ matrix_exp(covariance(h)),
    "determinant": lambda h: h * slogdet(covariance(h))[1],
    "kernel": regressed,
}  # fmt: skip


class Whitener(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return scalar(self.last(torch.tanh(self.function(self.second(torch.tanh(self.first(x)))))))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_near(name: str, bits: int) -> None:
    require_near(Whitener(FUNCTIONS[name]), torch.randn(96, 32), bits=bits)


def test_layers_before_a_decomposition_are_coded() -> None:
    report = fxapprox.explain(Whitener(whitened), torch.randn(512, 32), bits=8)
    assert any(decision.bits == 8 and decision.shape == (512, 64) for decision in report.decisions)
