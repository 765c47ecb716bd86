"""Networks that segment volumes and images: 3-d U-Nets with instance normalization, a V-Net, gates of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case

CLASSES = 3


def dice(scores: Tensor, labels: Tensor) -> Tensor:
    """One minus the overlap of softmax and labels, mean over examples and classes."""
    chances = scores.float().softmax(1)
    wanted = F.one_hot(labels, CLASSES).movedim(-1, 1).to(chances.dtype)
    places = tuple(range(2, scores.dim()))
    common, both = (chances * wanted).sum(places), chances.sum(places) + wanted.sum(places)
    return 1 - ((2 * common + 1e-5) / (both + 1e-5)).mean()


def focal(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy that weighs less where the network is sure (Lin et al. 2017)."""
    losses = F.cross_entropy(scores.float(), labels, reduction="none")
    return ((1 - torch.exp(-losses)).square() * losses).mean()


def segmented(name: str, build: Callable[[], nn.Module], *, batch: int, seed: int, shape: Sequence[int]) -> Case:
    """A model from (batch, 1, ...) to scores of three classes at every place, or a list of these, the finest first."""
    torch.manual_seed(seed)
    model = build().train()
    x, labels = torch.randn(batch, 1, *shape), torch.randint(CLASSES, (batch, *shape))

    def loss(out: Any) -> Tensor:
        scales = out if isinstance(out, list) else [out]
        total = torch.zeros(())
        for level, scores in enumerate(scales):
            step = tuple(
                slice(None, None, large // small) for large, small in zip(shape, scores.shape[2:], strict=True)
            )
            target = labels[(slice(None), *step)]
            total = total + 0.5**level * (dice(scores, target) + focal(scores, target))
        return total

    return Case(name, model, (x,), loss)


def prelu_unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, instance normalization without weights, dropout, one learned slope."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1), nn.InstanceNorm3d(outputs), nn.Dropout(0.1), nn.PReLU()
    )  # fmt: skip


class ResidualUnit(nn.Module):
    """Two units beside a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(prelu_unit(inputs, outputs, stride), prelu_unit(outputs, outputs))
        self.skip = nn.Conv3d(inputs, outputs, 3 if stride > 1 else 1, stride, 1 if stride > 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


class VolumeUNet(nn.Module):
    """Residual units down, transposed convolutions with PReLU up, skips concatenated (Kerfoot et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = ResidualUnit(1, width, 2), ResidualUnit(width, 2 * width, 2)
        self.middle = ResidualUnit(2 * width, 4 * width, 1)
        self.up = nn.Sequential(
            nn.ConvTranspose3d(6 * width, width, 3, 2, 1, 1), nn.InstanceNorm3d(width), nn.PReLU(),
            prelu_unit(width, width),
        )  # fmt: skip
        self.last = nn.ConvTranspose3d(2 * width, CLASSES, 3, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        up = self.up(torch.cat([self.middle(second), second], 1))
        return self.last(torch.cat([up, first], 1))


def volume_unet(*, seed: int = 0, batch: int = 2) -> Case:
    """A 3-d U-Net with instance normalization, dropout and PReLU."""
    return segmented("volume_unet", lambda: VolumeUNet(8), batch=batch, seed=seed, shape=(16, 16, 16))


def leaky_unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, instance normalization with weights, leaky rectifier in place; twice."""
    norm = lambda: [nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.01, inplace=True)]  # noqa: E731
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), *norm(),
        nn.Conv3d(outputs, outputs, 3, padding=1, bias=False), *norm(),
    )  # fmt: skip


class DynamicUNet(nn.Module):
    """As nnU-Net makes them (Isensee et al. 2021): scores at every scale of the decoder, the finest first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            leaky_unit(a, b, s) for a, b, s in zip((1, *widths), widths, (1, 2, (1, 2, 2)), strict=False)
        )
        self.grow = nn.ModuleList([nn.ConvTranspose3d(widths[2], widths[1], (1, 2, 2), (1, 2, 2), bias=False),
                                   nn.ConvTranspose3d(widths[1], widths[0], 2, 2, bias=False)])  # fmt: skip
        self.up = nn.ModuleList(leaky_unit(2 * w, w) for w in (widths[1], widths[0]))
        self.heads = nn.ModuleList(nn.Conv3d(w, CLASSES, 1) for w in (widths[1], widths[0]))

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        x, found = skips.pop(), []
        for grow, layer, head in zip(self.grow, self.up, self.heads, strict=True):
            x = layer(torch.cat([grow(x), skips.pop()], 1))
            found.append(head(x))
        return found[::-1]


def dynamic_unet(*, seed: int = 0, batch: int = 2, width: int = 8, shape: Sequence[int] = (8, 16, 16)) -> Case:
    """A 3-d U-Net with deep supervision; pooling differs by dimension."""
    return segmented("dynamic_unet", lambda: DynamicUNet(width), batch=batch, seed=seed, shape=shape)


class VNetStage(nn.Module):
    """Convolutions of 5, a slope per channel, and what came in added to what comes out (Milletari et al. 2016)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        conv = lambda: [nn.Conv3d(width, width, 5, padding=2), nn.BatchNorm3d(width)]  # noqa: E731
        self.body = nn.Sequential(*conv(), *(part for _ in range(count - 1) for part in (nn.PReLU(width), *conv())))
        self.last = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + x)


class VNet(nn.Module):
    """Volumes (N, 1, D, H, W) to scores; strided convolutions down, transposed ones up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, width, 5, padding=2), nn.BatchNorm3d(width))
        self.rest = nn.PReLU(width)
        self.down = nn.Sequential(nn.Conv3d(width, 2 * width, 2, 2), nn.BatchNorm3d(2 * width), nn.PReLU(2 * width))
        self.low, self.high = VNetStage(2 * width, 2), VNetStage(2 * width, 1)
        self.up = nn.Sequential(nn.ConvTranspose3d(2 * width, width, 2, 2), nn.BatchNorm3d(width), nn.PReLU(width))
        self.drop, self.head = nn.Dropout3d(0.2), nn.Conv3d(2 * width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.rest(h + x.expand_as(h))
        low = self.up(self.low(self.down(h)))
        return self.head(self.high(torch.cat([low, self.drop(h)], 1)))


def vnet(*, seed: int = 0, batch: int = 2) -> Case:
    """A V-Net."""
    return segmented("vnet", lambda: VNet(8), batch=batch, seed=seed, shape=(16, 16, 16))


class AttentionGate(nn.Module):
    """Weights a skip by what a coarser level makes of it (Oktay et al. 2018)."""

    def __init__(self, skip: int, coarse: int) -> None:
        super().__init__()
        inner = skip // 2
        self.skip = nn.Sequential(nn.Conv2d(skip, inner, 1), nn.BatchNorm2d(inner))
        self.coarse = nn.Sequential(nn.Conv2d(coarse, inner, 1), nn.BatchNorm2d(inner))
        self.weigh = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        return x * self.weigh(self.skip(x) + self.coarse(coarse))


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with BatchNorm and rectifier."""
    return nn.Sequential(*(
        part for width in (inputs, outputs)
        for part in (nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
    ))  # fmt: skip


class AttentionUNet(nn.Module):
    """Images (N, 1, H, W) to scores, with bilinear upsampling and gated skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = double(1, width), double(width, 2 * width), double(2 * width, 4 * width)
        self.rise = nn.ModuleList(nn.Conv2d(2 * w, w, 3, padding=1) for w in (2 * width, width))
        self.gates = nn.ModuleList(AttentionGate(w, w) for w in (2 * width, width))
        self.join = nn.ModuleList(double(2 * w, w) for w in (2 * width, width))
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        h = self.third(F.max_pool2d(second, 2))
        for rise, gate, join, skip in zip(self.rise, self.gates, self.join, (second, first), strict=True):
            h = rise(F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=True))
            h = join(torch.cat([gate(skip, h), h], 1))
        return self.head(h)


def attention_unet(*, seed: int = 0, batch: int = 2) -> Case:
    """A U-Net with gates of attention."""
    return segmented("attention_unet", lambda: AttentionUNet(8), batch=batch, seed=seed, shape=(32, 32))


BUILDERS: Sequence[Callable[..., Case]] = (volume_unet, dynamic_unet, vnet, attention_unet)
