"""Quotients, roots and logarithms of what a linear operator has summed: small where all that it summed is small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from tests.gradient_cases import Around, require_near, scalar

NODES = torch.arange(96) * 37 % 50  # which of 50 nodes each of 96 edges leads to
MEAN = torch.full((16, 1, 3, 3), 1 / 9)

IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "root of a pool": lambda h: torch.rsqrt(F.adaptive_avg_pool2d(h.square(), 8) + 1e-5),
    "root of a wide pool": lambda h: torch.rsqrt(F.avg_pool2d(h.relu().square(), 5, 1, 2) + 1e-4),
    "power pooling": lambda h: F.lp_pool2d(h, 2, 2),
    "generalized mean": lambda h: F.avg_pool2d(h.clamp_min(1e-3).pow(3), 2).pow(1 / 3),
    "divisive normalization": lambda h: h / (1e-2 + F.avg_pool2d(h.abs(), 3, 1, 1)),
    "divisor of a convolution": lambda h: h / torch.sqrt(0.1 + F.conv2d(h.square(), MEAN, padding=1, groups=16)),
    "local response": lambda h: F.local_response_norm(3 * h, 3, alpha=1.0, k=1e-2),
    "logarithm of a pool": lambda h: torch.log(F.avg_pool2d(h.square(), 2) + 1e-4),
}  # fmt: skip
ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "groups of four": lambda h: F.rms_norm(h.view(-1, 16, 4), (4,), eps=1e-5).flatten(1),
    "running root": lambda h: h.cumsum(1) / (1e-3 + h.square().cumsum(1)).sqrt(),
    "running softmax": lambda h: (h.exp() * h).cumsum(1) / h.exp().cumsum(1),
    "running logarithm": lambda h: torch.log(h.square().cumsum(1) + 1e-3),
    "sums over edges": lambda h: h.exp() / torch.zeros(50, 64).index_add(0, NODES, h.exp())[NODES],
    "gates of edges": lambda h: _gated(torch.sigmoid(3 * h - 4), h),
    "scan": lambda h: _scanned(h[:, :16]),
    "fixed weights": lambda h: h[:, :32] / (1e-2 + h.square() @ torch.eye(64)[:, :32]),
}  # fmt: skip


def _scanned(h: Tensor) -> Tensor:
    """A linear recurrence as prefix sums: what decays is multiplied up before, and down again behind."""
    steps = F.softplus(3 * h).cumsum(1)
    return (h * steps.exp()).cumsum(1) * (-steps).exp()


def _gated(gates: Tensor, h: Tensor) -> Tensor:
    """Messages weighed by gates, over the sum of the gates at each node."""
    nodes = torch.zeros(50, 64)
    return nodes.index_add(0, NODES, gates * h) / (nodes.index_add(0, NODES, gates) + 1e-6)


class Images(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return scalar(self.function(self.second(self.norm(self.first(x)))))


@pytest.mark.parametrize("name", IMAGES)
def test_windows(name: str) -> None:
    require_near(Images(IMAGES[name]), torch.randn(4, 3, 18, 18))


def test_a_divisor_of_at_least_1_leaves_its_operands_coded() -> None:
    report = fxapprox.explain(Images(lambda h: F.local_response_norm(h, 5)), torch.randn(4, 3, 18, 18), bits=8)
    assert not [d.value for d in report.decisions if d.storage == "exact" and d.bytes_after > 70_000]


@pytest.mark.parametrize("name", ROWS)
def test_prefixes_nodes_and_groups(name: str) -> None:
    require_near(Around(ROWS[name], scale=2.0), torch.randn(96, 32))
