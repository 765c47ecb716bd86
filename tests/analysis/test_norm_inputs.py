"""Norms over products of which a factor comes near 0: a code's error is divided by the length of each row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.analysis.norm_inputs import NORMED
from tests.gradient_cases import require_near, scalar

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda y: F.layer_norm(y, y.shape[-1:]),
    "root mean square": lambda y: F.rms_norm(y, y.shape[-1:], eps=1e-5),
    "length": lambda y: F.normalize(y, dim=-1),
    "groups": lambda y: F.group_norm(y.flatten(0, 1).flatten(1), y.shape[2]).view(y.shape),
}  # fmt: skip


class Attention(nn.Module):
    """Linear attention with a norm for each head; ``decay`` makes it a retention, ``last`` puts the heads last."""

    def __init__(self, norm: Callable[[Tensor], Tensor], heads: int, width: int, *, decay: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(64, heads * width) for _ in range(4))
        self.o = nn.Linear(heads * width, 8)
        self.norm, self.heads, self.decay = norm, heads, decay

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        scores = torch.einsum("blhd,bmhd->bhlm", q, k).tril()
        if self.decay:
            steps = torch.arange(x.shape[1])
            scores = scores * 0.9 ** (steps[:, None] - steps).clamp_min(0)
        return scalar(self.o(self.norm(torch.einsum("bhlm,bmhd->blhd", scores, v)).flatten(2)))


@pytest.mark.parametrize(("heads", "width"), [(4, 16), (2, 64)])
@pytest.mark.parametrize("norm", NORMS)
def test_heads_of_linear_attention(norm: str, heads: int, width: int) -> None:
    model = Attention(NORMS[norm], heads, width, decay=norm == "groups")
    require_near(model, torch.randn(2, 32, 64))


class Gated(nn.Module):
    """A norm of rows that are multiplied by one number each."""

    def __init__(self, gate: Callable[[Tensor], Tensor], norm: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.a, self.g, self.o = nn.Linear(32, width), nn.Linear(32, 1), nn.Linear(width, 8)
        self.gate, self.norm = gate, norm

    def forward(self, x: Tensor) -> Tensor:
        return scalar(self.o(self.norm(self.a(x) * self.gate(self.g(x)))))


@pytest.mark.parametrize("width", [64, 16])
@pytest.mark.parametrize(
    "gate",
    [lambda g: g, lambda g: torch.sigmoid(8 * g), torch.exp, lambda g: 1 / (F.softplus(g) + 1e-2)],
    ids=["linear", "sigmoid", "exponential", "divisor"],
)
@pytest.mark.parametrize("norm", ["layer norm", "length"])
def test_rows_with_a_common_factor(norm: str, gate: Callable[[Tensor], Tensor], width: int) -> None:
    require_near(Gated(gate, NORMS[norm], width), torch.randn(256, 32))


class Scaled(nn.Module):
    """One learned number for all, which a norm divides out again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o, self.scale = nn.Linear(32, 64), nn.Linear(64, 8), nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        return scalar(self.o(F.layer_norm(self.scale * self.a(x), (64,))))


def test_a_learned_scale() -> None:
    require_near(Scaled(), torch.randn(256, 32))


class Excited(nn.Module):
    """Channels that are weighed by what another convolution finds, before a norm of each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.g(x).mean((2, 3), keepdim=True))
        return scalar(self.o(F.instance_norm(self.a(x) * gate)))


def test_images_with_a_common_factor() -> None:
    require_near(Excited(), torch.randn(4, 3, 18, 18))


class Elementwise(nn.Module):
    """A norm of elements that are multiplied by exponentials."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.o = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return scalar(self.o(F.layer_norm(self.a(x) * torch.exp(5 * self.g(x)), (64,))))


def test_rows_that_few_elements_make() -> None:
    require_near(Elementwise(), torch.randn(256, 32))


class Recurrence(nn.Module):
    """Heads of a state that is read step by step, gated, and normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.z = (nn.Linear(64, 64) for _ in range(4))
        self.o = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, z = (f(x).unflatten(-1, (4, 16)).transpose(1, 2) for f in (self.q, self.k, self.v, self.z))
        state, rows = torch.zeros(len(x), 4, 16, 16), []
        for t in range(x.shape[1]):
            state = 0.9 * state + k[:, :, t, :, None] * v[:, :, t, None, :]
            rows.append((q[:, :, t, None, :] @ state)[..., 0, :])
        y = torch.stack(rows, 2) * F.silu(z)
        return scalar(self.o(F.rms_norm(y, (16,), eps=1e-5).transpose(1, 2).flatten(2)))


def test_rows_of_a_recurrence() -> None:
    require_near(Recurrence(), torch.randn(4, 6, 64))


def test_only_what_shares_a_group_is_kept() -> None:
    """Heads as wide as a group are coded, and so is every product without a norm."""

    def reasons(norm: Callable[[Tensor], Tensor], width: int) -> list[str]:
        report = fxapprox.explain(Attention(norm, 2, width, decay=False), torch.randn(2, 64, 64), bits=8)
        return [decision.reason for decision in report.decisions]

    assert NORMED in reasons(NORMS["groups"], 16)
    assert NORMED not in reasons(NORMS["groups"], 64)
    assert NORMED not in reasons(torch.tanh, 16)
