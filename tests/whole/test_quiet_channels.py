"""Channels that a normalization leaves small, because their variance is near or below its eps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.gradient_cases import require_near, scalar

LAYERS = {"batch": nn.BatchNorm2d(16), "instance": nn.InstanceNorm2d(16, affine=True), "group": nn.GroupNorm(4, 16)}


class Net(nn.Module):
    """Of the first convolution's channels some are quiet: their weights are ``size`` times what they were."""

    def __init__(self, norm: nn.Module, activation: nn.Module, size: float, quiet: int) -> None:
        super().__init__()
        self.first, self.norm, self.activation = nn.Conv2d(3, 16, 3), norm, activation
        self.last = nn.Conv2d(16, 8, 3)
        with torch.no_grad():
            self.first.weight[:quiet] *= size
            self.norm.bias.uniform_(-0.5, 0.5)  # type: ignore[operator]  # rounding would decide on which side of 0 they are

    def forward(self, x: Tensor) -> Tensor:
        return scalar(self.last(self.activation(self.norm(self.first(x)))))


@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU()], ids=["gelu", "relu"])
@pytest.mark.parametrize(("size", "quiet"), [(3e-4, 16), (1e-6, 16), (3e-4, 8), (0.0, 8)])
def test_gradients_are_near(size: float, quiet: int, activation: nn.Module) -> None:
    require_near(Net(nn.BatchNorm2d(16), activation, size, quiet), torch.randn(8, 3, 20, 20))


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_other_normalizations(norm: str) -> None:
    require_near(Net(LAYERS[norm], nn.GELU(), 3e-4, 16), torch.randn(8, 3, 20, 20), bits=(4,))


def test_one_pixel_that_is_far_from_all_others() -> None:
    x = torch.randn(8, 3, 20, 20)
    x[0, :, 3, 3] = 300.0
    require_near(Net(nn.BatchNorm2d(16), nn.GELU(), 1.0, 16), x, bits=(8,))
