"""A value that cannot be handled is kept exact, by name, and the rest of its graph is coded all the same."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.codecs import Group
from fxapprox.errors import UnsupportedGraph
from tests.passes.graphs import training


@dataclass(frozen=True, slots=True)
class Failing(Group):
    """Gives up on values of one width."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape[-1] == 48:
            raise RuntimeError("not this one")
        return Group.encode(self, x)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 4))


def test_a_codec_that_fails_costs_one_value() -> None:
    net, x = model(), torch.randn(64, 32)
    with pytest.warns(UserWarning, match=r"keeps 'addmm' exact: .*Failing.* raised RuntimeError: not this one"):
        report = fxapprox.explain(net, x, min_bytes=0, policy=lambda _: Failing(4))
    stored = {decision.value: decision.storage for decision in report.decisions}
    assert not report.fallback
    assert stored["addmm"] == "exact"
    assert stored["addmm_1"] == "4-bit group"


def test_strict_raises() -> None:
    with pytest.raises(UnsupportedGraph, match="not this one"):
        fxapprox.explain(model(), torch.randn(64, 32), min_bytes=0, policy=lambda _: Failing(4), strict=True)


class Reshaped(nn.Module):
    """Decisions in another shape than the value that is made: (batch, time, channels) of (rows, channels)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.activation, self.last = nn.Linear(32, 64), activation, nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x))).square().mean()


ACTIVATIONS = [
    nn.PReLU(), nn.PReLU(8), nn.Mish(), nn.Hardswish(), nn.LeakyReLU(), nn.ReLU(), nn.Hardtanh(), nn.Softshrink(),
    nn.Threshold(0.1, 0.0), nn.ReLU6(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_decisions_behind_views(activation: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = training(Reshaped(activation), torch.randn(4, 8, 32))
        exact, eight, four = (train(bits=bits) for bits in (None, 8, 4))
    assert four.report.saved_bytes < eight.report.saved_bytes < exact.report.saved_bytes
    assert exact.report.saved_bytes > 4 * four.report.saved_bytes
    assert eight.error(exact) < 0.02
    assert four.error(exact) < 0.2


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(16), nn.InstanceNorm2d(16, affine=True), nn.BatchNorm2d(16), nn.GroupNorm(4, 16)]
)
@pytest.mark.parametrize("activation", [nn.PReLU(), nn.LeakyReLU(0.01), nn.ReLU()])
def test_normalized_images_and_slopes_take_one_code(norm: nn.Module, activation: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), norm, activation, nn.Conv2d(16, 4, 3))
    report = fxapprox.explain(net, torch.randn(2, 3, 18, 18), bits=4, strict=True)
    assert report.baseline_bytes > 6 * report.saved_bytes


@pytest.mark.parametrize("norm", [nn.LayerNorm(64), nn.LayerNorm(64, elementwise_affine=False), nn.RMSNorm(64)])
def test_norms_of_rows_before_rectifiers(norm: nn.Module) -> None:
    """Factors of rows and of columns together are one for each element: the code is that of the normalized value."""
    net = nn.Sequential(nn.Linear(64, 64), norm, nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    report = fxapprox.explain(net, torch.randn(2000, 64), bits=4, strict=True)
    assert report.baseline_bytes > 5 * report.saved_bytes
