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


def orthogonal(h: Tensor) -> Tensor:
    """Five steps of Newton-Schulz with the coefficients that Muon takes."""
    x = h.mT / (h.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return 10 * x.mT


def normalized(h: Tensor) -> Tensor:
    """Whitening by an inverse root of the covariance, found by iteration."""
    matrix = covariance(h)
    matrix, root = matrix / matrix.trace(), torch.eye(32)
    for _ in range(5):
        root = (3 * root - root @ root @ root @ matrix) / 2
    return h @ root


def iterated_inverse(h: Tensor) -> Tensor:
    """Of each of many small matrices."""
    matrix = h.view(-1, 8, 4).mT @ h.view(-1, 8, 4) / 8 + 0.1 * torch.eye(4)
    inverse = matrix / matrix.square().sum((-2, -1), keepdim=True)
    for _ in range(8):
        inverse = 2 * inverse - inverse @ matrix @ inverse
    return (h.view(-1, 8, 4) @ inverse).flatten(1)


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
    "orthogonal by iteration": orthogonal,
    "whitening by iteration": normalized,
    "inverse by iteration": iterated_inverse,
}  # fmt: skip


class Whitener(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return scalar(self.last(torch.tanh(self.function(self.second(torch.tanh(self.first(x)))))))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_near(name: str) -> None:
    require_near(Whitener(FUNCTIONS[name]), torch.randn(96, 32))


def test_layers_before_a_decomposition_are_coded() -> None:
    report = fxapprox.explain(Whitener(whitened), torch.randn(512, 32), bits=8)
    assert any(decision.bits == 8 and decision.shape == (512, 64) for decision in report.decisions)


@pytest.mark.parametrize("function", [lambda h: h @ h.mT @ h / 96, lambda h: (h @ h.mT).softmax(-1) @ h])
def test_products_of_low_degree_are_coded(function: Callable[[Tensor], Tensor]) -> None:
    """Attention of a value to itself, and what is a few times a factor."""
    report = fxapprox.explain(Whitener(function), torch.randn(96, 32), bits=8)
    assert not any(decision.storage == "exact" and decision.bytes_after > 4096 for decision in report.decisions)
