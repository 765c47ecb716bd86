"""MobileNetV3 (Howard et al. 2019, tables 1 and 2): inverted residuals, squeeze-and-excite, hard swish."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Bottleneck(NamedTuple):
    """One line of the paper's tables: kernel, expanded channels, channels out, squeeze-and-excite, HS or RE, stride."""

    kernel: int
    expanded: int
    out: int
    excited: bool
    swish: bool
    stride: int


LARGE = tuple(
    Bottleneck(*line)
    for line in (
        (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
    )
)  # fmt: skip
SMALL = tuple(
    Bottleneck(*line)
    for line in (
        (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
    )
)  # fmt: skip
HEADS = {LARGE: 1280, SMALL: 1024}


class Excite(nn.Module):
    """Squeeze-and-excite: scales channels by a gate that their means decide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * nn.functional.hardsigmoid(self.up(gate))


def normalized(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and its BatchNorm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, excite, project; added to its input where shapes allow."""

    def __init__(self, inputs: int, line: Bottleneck) -> None:
        super().__init__()
        kernel, wide, outputs, excited, swish, stride = line
        activation = nn.Hardswish if swish else nn.ReLU
        expand = [*normalized(inputs, wide, 1), activation()] if wide != inputs else []
        depthwise = [*normalized(wide, wide, kernel, stride, groups=wide), *([Excite(wide)] if excited else [])]
        self.layers = nn.Sequential(*expand, *depthwise, activation(), *normalized(wide, outputs, 1))
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + out if self.added else out


def mobilenet_v3(lines: tuple[Bottleneck, ...], classes: int = 10) -> nn.Module:
    """The whole network, for images (N, 3, H, W), in training mode; dropout as in the paper, 0.2."""
    channels = [16, *(line.out for line in lines)]
    body = [InvertedResidual(inputs, line) for inputs, line in zip(channels, lines, strict=False)]
    wide = lines[-1].expanded
    head = HEADS.get(lines, 2 * wide)
    return nn.Sequential(
        *normalized(3, 16, 3, stride=2), nn.Hardswish(), *body, *normalized(channels[-1], wide, 1), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, head), nn.Hardswish(), nn.Dropout(0.2),
        nn.Linear(head, classes),
    ).train()  # fmt: skip
