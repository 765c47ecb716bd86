"""Exponentials and sigmoids of which a small step covers all: an operand's code would have them fall elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from tests.gradient_cases import Around, require_near

CENTRES = torch.linspace(-4, 4, 33)


def distances(h: Tensor) -> Tensor:
    return h[..., None] - CENTRES


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"Gaussians, {w}": lambda h, w=w: torch.exp(-distances(h).square() / w).mean(1) for w in (0.02, 0.1, 0.5, 2.0)},
    "Laplacians": lambda h: torch.exp(-distances(h).abs() / 0.05).mean(1),
    "von Mises": lambda h: torch.exp(40 * (torch.cos(distances(h)) - 1)).mean(1),
    "soft histogram": lambda h: torch.sigmoid(distances(h) / 0.02).diff(dim=-1).mean(1),
    "soft argmax": lambda h: (50 * h).softmax(-1) @ torch.linspace(-3, 3, 64)[:, None],
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_near(name: str) -> None:
    require_near(Around(FUNCTIONS[name], scale=3.0), torch.randn(96, 32))


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.full((33,), 50.0))

    def forward(self, h: Tensor) -> Tensor:
        return torch.exp(-self.width * distances(h).square()).mean(1)


def test_a_learned_width_can_be_any() -> None:
    require_near(Around(Learned(), scale=3.0), torch.randn(96, 32))


@pytest.mark.parametrize("function", [nn.GELU(), nn.SiLU(), nn.Mish(), lambda h: h * torch.sigmoid(1.702 * h)])
def test_what_everybody_uses_is_coded(function: Callable[[Tensor], Tensor]) -> None:
    """After a normalization, whose scale and shift nobody knows, too."""
    norm = nn.BatchNorm1d(64)
    report = fxapprox.explain(Around(lambda h: function(norm(h)), scale=3.0), torch.randn(512, 32), bits=8)
    assert not [d.value for d in report.decisions if d.bytes_after > 40_000]
