"""Small convolutional networks for phones: inverted residuals, squeeze-and-excite, shuffled channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case, mobilenet_v3
from tools.zoo.models.convnets import Excite, conv, conv_norm, images, pooled_head

V3_LINES = tuple(mobilenet_v3.SMALL[i] for i in (0, 1, 2, 3, 4, -1))


def mobilenet(*, seed: int = 0, batch: int = 4) -> Case:
    """MobileNetV3 with six of the small network's blocks: hard swish, squeeze-and-excite, dropout."""
    return images("mobilenet", lambda: mobilenet_v3.mobilenet_v3(V3_LINES), batch=batch, seed=seed, size=48)


class MBConv(nn.Module):
    """EfficientNet's block (Tan and Le 2019): expand, depthwise, excite, project; whole samples are dropped."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dropped: float) -> None:
        super().__init__()
        wide = 4 * inputs
        depthwise = conv_norm(wide, wide, kernel, stride, groups=wide)
        self.layers = nn.Sequential(
            *conv_norm(inputs, wide, 1), nn.SiLU(inplace=True), *depthwise, nn.SiLU(inplace=True),
            Excite(wide, inputs // 4, F.silu), *conv_norm(wide, outputs, 1),
        )  # fmt: skip
        self.dropped, self.added = dropped, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + self._some(out) if self.added else out

    def _some(self, x: Tensor) -> Tensor:
        """Stochastic depth: samples of zeros, and the others scaled up."""
        kept = torch.empty(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.dropped)
        return x * kept / (1 - self.dropped) if self.training else x


def efficientnet(*, seed: int = 0, batch: int = 4) -> Case:
    """EfficientNet with five blocks."""

    def build() -> nn.Module:
        stem = [*conv_norm(3, 16, 3, stride=2), nn.SiLU(inplace=True)]
        blocks = [
            MBConv(16, 16, 3, 1, 0.1),
            MBConv(16, 24, 3, 2, 0.1),
            MBConv(24, 24, 5, 1, 0.2),
            MBConv(24, 32, 5, 2, 0.2),
        ]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)]
        return nn.Sequential(*stem, *blocks, *conv_norm(32, 64, 1), nn.SiLU(inplace=True), *head)

    return images("efficientnet", build, batch=batch, seed=seed)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Shuffle(nn.Module):
    """ShuffleNetV2's unit (Ma et al. 2018): half the channels pass, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        depthwise = conv_norm(half, half, 3, groups=half)
        self.layers = nn.Sequential(*conv(half, half, 1), *depthwise, *conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return shuffled(torch.cat([kept, self.layers(changed)], dim=1), 2)


class ShuffleDown(nn.Module):
    """The same with half the size: both ways are convolved, and channels double."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = nn.Sequential(*conv_norm(channels, channels, 3, 2, groups=channels), *conv(channels, channels, 1))
        self.right = nn.Sequential(
            *conv(channels, channels, 1), *conv_norm(channels, channels, 3, 2, groups=channels),
            *conv(channels, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(torch.cat([self.left(x), self.right(x)], dim=1), 2)


def shufflenet(*, seed: int = 0, batch: int = 4) -> Case:
    """ShuffleNetV2 with two stages."""

    def build() -> nn.Module:
        stages = [ShuffleDown(16), Shuffle(32), Shuffle(32), ShuffleDown(32), Shuffle(64)]
        return nn.Sequential(*conv(3, 16, 3, stride=2), *stages, *pooled_head(64))

    return images("shufflenet", build, batch=batch, seed=seed)


BUILDERS: Sequence[Callable[..., Case]] = (mobilenet, efficientnet, shufflenet)
