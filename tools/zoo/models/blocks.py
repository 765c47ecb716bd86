"""Equal blocks of a convolutional network; in a file of their own, because golden files name their lines."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A convolution with its normalization and rectifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


def blocks(count: int = 4, channels: int = 8) -> nn.Sequential:
    """Blocks in a row: (N, channels, H, W) to the same shape."""
    return nn.Sequential(*(Block(channels) for _ in range(count)))


def mean_square(x: Tensor) -> Tensor:
    """A loss."""
    return x.square().mean()
