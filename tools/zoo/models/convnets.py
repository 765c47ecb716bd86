"""Convolutional networks for images: one of each family, with few blocks and channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case, classify


def images(name: str, build: Callable[[], nn.Module], *, batch: int, seed: int, size: int = 32) -> Case:
    """A classifier of random images (batch, 3, size, size) into ten classes, in training mode."""
    torch.manual_seed(seed)
    model = build().train()
    return Case(name, model, (torch.randn(batch, 3, size, size),), classify(batch))


def conv_norm(
    inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size (but for its stride), without bias, and its BatchNorm."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = height // 2, width // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, groups: int = 1) -> nn.Sequential:
    """``conv_norm`` and a rectifier in place."""
    return nn.Sequential(*conv_norm(inputs, outputs, kernel, stride, groups), nn.ReLU(inplace=True))


def pooled_head(channels: int) -> list[nn.Module]:
    """From (N, channels, H, W) to ten scores."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


class Excite(nn.Module):
    """Squeeze-and-excite (Hu et al. 2018): scales channels by sigmoid gates that their means decide."""

    def __init__(self, channels: int, squeezed: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.activation(self.down(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.up(gate))


class Residual(nn.Module):
    """A body beside a shortcut, which is projected where the shape changes; a rectifier in place over the sum."""

    def __init__(self, body: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.body, self.shortcut = body, nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


def bottleneck(inputs: int, outputs: int, stride: int) -> Residual:
    """ResNet's 1x1, 3x3, 1x1 (He et al. 2016)."""
    inner = outputs // 4
    body = nn.Sequential(*conv(inputs, inner, 1), *conv(inner, inner, 3, stride), *conv_norm(inner, outputs, 1))
    return Residual(body, inputs, outputs, stride)


def resnet(*, seed: int = 0, batch: int = 4) -> Case:
    """ResNet with bottlenecks: 7x7 stem with max-pooling, three stages."""

    def build() -> nn.Module:
        stem = [*conv(3, 16, 7, stride=2), nn.MaxPool2d(3, 2, padding=1)]
        stages = [bottleneck(16, 32, 1), bottleneck(32, 32, 1), bottleneck(32, 64, 2), bottleneck(64, 128, 2)]
        return nn.Sequential(*stem, *stages, *pooled_head(128))

    return images("resnet", build, batch=batch, seed=seed, size=48)


def regnet(*, seed: int = 0, batch: int = 4) -> Case:
    """RegNetY (Radosavovic et al. 2020): grouped 3x3 convolutions of one width, squeeze-and-excite."""

    def block(inputs: int, outputs: int) -> Residual:
        body = nn.Sequential(
            *conv(inputs, outputs, 1), *conv(outputs, outputs, 3, 2, groups=outputs // 8),
            Excite(outputs, inputs // 4, F.relu), *conv_norm(outputs, outputs, 1),
        )  # fmt: skip
        return Residual(body, inputs, outputs, 2)

    def build() -> nn.Module:
        widths = (16, 32, 48, 64)
        blocks = [block(a, b) for a, b in pairwise(widths)]
        return nn.Sequential(*conv(3, widths[0], 3, stride=2), *blocks, *pooled_head(widths[-1]))

    return images("regnet", build, batch=batch, seed=seed)


class Dense(nn.Module):
    """A dense layer (Huang et al. 2017): its ``growth`` new channels are put behind all earlier ones."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True),
            nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


def densenet(*, seed: int = 0, batch: int = 4, growth: int = 8) -> Case:
    """DenseNet: two dense blocks and a transition that halves channels and size."""

    def block(inputs: int) -> list[nn.Module]:
        return [Dense(inputs + i * growth, growth) for i in range(3)]

    def build() -> nn.Module:
        transition = [nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)]
        end = [nn.BatchNorm2d(44), nn.ReLU(), *pooled_head(44)]
        return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), *block(16), *transition, *block(20), *end)

    return images("densenet", build, batch=batch, seed=seed)


class Branches(nn.Module):
    """Several ways through a block, their channels concatenated."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([way(x) for way in self.ways], dim=1)


def inception(*, seed: int = 0, batch: int = 4) -> Case:
    """Inception (Szegedy et al. 2016): parallel kernels, factorized 1x7 and 7x1, pooling inside and between blocks."""

    def block(inputs: int) -> Branches:
        factored = nn.Sequential(*conv(inputs, 8, 1), *conv(8, 8, (1, 7)), *conv(8, 16, (7, 1)))
        double = nn.Sequential(*conv(inputs, 8, 1), *conv(8, 16, 3), *conv(16, 16, 3))
        pooled = nn.Sequential(nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), *conv(inputs, 16, 1))
        return Branches(conv(inputs, 16, 1), factored, double, pooled)

    def build() -> nn.Module:
        reduce = Branches(conv(64, 32, 3, stride=2), nn.MaxPool2d(3, 2, padding=1))
        head = [nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 10)]
        return nn.Sequential(*conv(3, 16, 3, stride=2), block(16), reduce, block(96), *head)

    return images("inception", build, batch=batch, seed=seed)


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, MLP with GELU on the last dimension, layer scale (Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.scale = nn.LayerNorm(channels, eps=1e-6), nn.Parameter(torch.full((channels,), 0.1))
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.mlp(h)).permute(0, 3, 1, 2)


def convnext(*, seed: int = 0, batch: int = 4) -> Case:
    """ConvNeXt: patchify stem, two stages with downsampling between them."""

    def build() -> nn.Module:
        stem = [nn.Conv2d(3, 16, 4, 4), LayerNorm2d(16)]
        down = [LayerNorm2d(16), nn.Conv2d(16, 32, 2, 2)]
        blocks = [ConvNeXtBlock(16), ConvNeXtBlock(16), *down, ConvNeXtBlock(32)]
        return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 10))

    return images("convnext", build, batch=batch, seed=seed, size=64)


def alexnet(*, seed: int = 0, batch: int = 4) -> Case:
    """AlexNet (Krizhevsky et al. 2012): local response normalization, overlapping max-pooling, dropout."""

    def build() -> nn.Module:
        features = [
            nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2),
        ]  # fmt: skip
        classifier = [nn.Dropout(), nn.Linear(288, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)]
        return nn.Sequential(*features, nn.Flatten(), *classifier)

    return images("alexnet", build, batch=batch, seed=seed)


class StandardizedConv(nn.Conv2d):
    """A convolution with its weights standardized for each output channel, and a learned gain (Brock et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        scale = torch.rsqrt((variance * self.weight[0].numel()).clamp(min=1e-4)) * self.gain
        return F.conv2d(x, (self.weight - mean) * scale, self.bias, self.stride, self.padding)


class NormFree(nn.Module):
    """A residual block without normalization: x + alpha * f(gelu(x / beta))."""

    def __init__(self, channels: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.first, self.second = (StandardizedConv(channels, channels, 3) for _ in range(2))
        self.skip_gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.gelu(x) * 1.7 / self.beta)
        return x + 0.2 * self.skip_gain * self.second(F.gelu(h) * 1.7)


def nfnet(*, seed: int = 0, batch: int = 4) -> Case:
    """A normalizer-free ResNet: standardized weights, scaled activations."""

    def build() -> nn.Module:
        blocks = [NormFree(16, 1.0), NormFree(16, 1.02), StandardizedConv(16, 32, 3, 2), NormFree(32, 1.0)]
        return nn.Sequential(StandardizedConv(3, 16, 3, 2), *blocks, nn.GELU(), *pooled_head(32))

    return images("nfnet", build, batch=batch, seed=seed)


BUILDERS: Sequence[Callable[..., Case]] = (resnet, regnet, densenet, inception, convnext, alexnet, nfnet)
