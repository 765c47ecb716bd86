"""Functions whose gradient is made by small elements beside large ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxapprox.analysis.facts import Facts
from fxapprox.analysis.reads import reads_of
from fxapprox.analysis.unevenness import EXPONENTIAL, NEAR_ZERO, QUOTIENT, RELATIVE, uneven_of
from fxapprox.ir.joint import Joint
from tests.passes.graphs import joint_of, training
from tools.zoo.training import gradients, relative

X, W = torch.randn(96, 64), torch.randn(64, 64, requires_grad=True)


class Net(nn.Module):
    """Two layers, a function of their bounded output, and a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 64), nn.Linear(64, 64), nn.LazyLinear(8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.last(self.function(h)).square().mean()


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid by hand": lambda h: 1 / (1 + torch.exp(-8 * h)),
    "SiLU by hand": lambda h: 8 * h / (1 + torch.exp(-8 * h)),
    "product by rsqrt": lambda h: torch.rsqrt(1e-3 + (5 * h) ** 2),
    "smooth absolute value": lambda h: torch.sqrt(1e-6 + (5 * h) ** 2),
    "short vectors of length 1": lambda h: F.normalize(30 * h.view(-1, 32, 2), dim=-1).flatten(1),
    "angle": lambda h: torch.atan2(h[:, ::2], h[:, 1::2]),
    "length": lambda h: torch.hypot(30 * h[:, ::2], 30 * h[:, 1::2]),
    "log of a power": lambda h: torch.log(1e-4 + h[:, ::2] ** 2 + h[:, 1::2] ** 2),
    "quotient by a square": lambda h: h[:, ::2] / (0.01 + h[:, 1::2] ** 2),
    "power below 0": lambda h: (1 + (9 * h) ** 2) ** -0.5,
    "centred and scaled": lambda h: (h - h.mean(-1, keepdim=True)) / (1e-3 + h.std(-1, keepdim=True)),
    "softmax of few": lambda h: (4 * h).view(-1, 16, 4).softmax(-1).flatten(1),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_near(name: str) -> None:
    torch.manual_seed(0)
    model, x = Net(FUNCTIONS[name]), torch.randn(96, 32)
    model(x).backward()
    exact, train = gradients(model), training(model, x)
    for bits, limit in ((8, 0.01), (4, 0.15)):
        assert relative(train(bits=bits, min_bytes=4096).gradient, exact) < limit, bits


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "rare labels": lambda z: F.binary_cross_entropy_with_logits(4 * z - 7, RARE),
    "focal": lambda z: focal(F.binary_cross_entropy_with_logits(4 * z - 7, RARE, reduction="none")),
    "variance": lambda z: gaussian(z, F.softplus(4 * z) + 1e-3),
    "classes": lambda z: F.cross_entropy(8 * z, torch.arange(96), label_smoothing=0.1),
}  # fmt: skip
RARE = (torch.arange(96 * 256).view(96, 256) % 101 == 0).float()


def gaussian(mean: Tensor, variance: Tensor) -> Tensor:
    """As torch's, which looks at the variance in Python."""
    return (variance.log() + (mean - RARE) ** 2 / variance).mean() / 2


def focal(loss: Tensor) -> Tensor:
    return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_what_is_rare_are_not_biased(name: str) -> None:
    """A bias's gradient is a sum over the batch: errors average out there, if they are no bias themselves."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 256)), torch.randn(96, 32)
    LOSSES[name](model(x)).backward()
    train = training(model, x, loss=lambda x: LOSSES[name](model(x)))
    for bits, limit in ((8, 0.01), (4, 0.1)):
        bias = slice(-256, None)  # the last parameter
        assert relative(train(bits=bits, min_bytes=4096).gradient[bias], gradients(model)[bias]) < limit, bits


def reasons(function: Callable[[Tensor], Tensor]) -> dict[str, str]:
    """{operator: why its result is not coded}, behind a tanh."""
    joint: Joint = joint_of(lambda x: function(torch.tanh(x @ W)).square().sum(), X)
    facts = Facts.of(joint)
    return {facts.ops[node]: reason for node, reason in uneven_of(joint, facts, reads_of(joint, facts)).items()}


def test_why_a_value_is_kept() -> None:
    assert reasons(lambda h: torch.exp(9 * torch.relu(h) * h.exp()))["aten.exp"] == EXPONENTIAL
    assert reasons(lambda h: 1 / (1 + torch.exp(-8 * h)))["aten.exp"] == RELATIVE
    assert reasons(lambda h: 1 / h)["aten.reciprocal"] == QUOTIENT
    assert reasons(lambda h: torch.sqrt(h * h + 1e-6))["aten.tanh"] == NEAR_ZERO


@pytest.mark.parametrize("function", [
    torch.sigmoid, F.silu, F.gelu, F.softplus, F.logsigmoid, lambda h: torch.softmax(h, -1),
    lambda h: F.layer_norm(h, (64,)), lambda h: F.rms_norm(h, (64,)), lambda h: F.normalize(h, dim=-1),
    lambda h: F.cross_entropy(h, torch.zeros(96, dtype=torch.int64)), lambda h: h / h.norm(dim=-1, keepdim=True),
])  # fmt: skip
def test_what_everybody_uses_is_coded(function: Callable[[Tensor], Tensor]) -> None:
    assert "aten.tanh" not in reasons(function)
    assert not {NEAR_ZERO, QUOTIENT} & set(reasons(function).values())
