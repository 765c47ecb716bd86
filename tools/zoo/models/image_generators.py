"""Networks from images to images: translation, superresolution, generation by style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case


def made(name: str, build: Callable[[], nn.Module], *, batch: int, seed: int, size: int, factor: int = 1) -> Case:
    """A model from images (batch, 3, size, size) to images ``factor`` times as large, near random ones by L1."""
    torch.manual_seed(seed)
    model = build().train()
    x, wanted = torch.randn(batch, 3, size, size), torch.rand(batch, 3, factor * size, factor * size) * 2 - 1
    return Case(name, model, (x,), lambda out: F.l1_loss(out.float(), wanted))


class Padded(nn.Module):
    """Two convolutions of padded images with instance normalization, beside a shortcut."""

    def __init__(self, width: int, pad: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            pad(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(inplace=True),
            pad(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def cyclegan(*, seed: int = 0, batch: int = 2, width: int = 8) -> Case:
    """CycleGAN's generator (Zhu et al. 2017), with reflection padding, and replication in half of its blocks."""
    norm = lambda channels: [nn.InstanceNorm2d(channels), nn.ReLU(True)]  # noqa: E731
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), *norm(width),
        nn.Conv2d(width, 2 * width, 3, 2, 1), *norm(2 * width),
        Padded(2 * width, nn.ReflectionPad2d), Padded(2 * width, nn.ReplicationPad2d),
        nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), *norm(width),
        nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh(),
    )  # fmt: skip
    return made("cyclegan", layers, batch=batch, seed=seed, size=32)


class Nested(nn.Module):
    """pix2pix's generator (Isola et al. 2017), a level around the next; the last level's dropout is noise."""

    def __init__(self, outer: int, inner: int, inside: nn.Module | None, *, outermost: bool = False) -> None:
        super().__init__()
        self.outermost = outermost
        inputs = 3 if outermost else outer
        down = nn.Conv2d(inputs, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(inner * (1 if inside is None else 2), 3 if outermost else outer, 4, 2, 1)
        if outermost:
            layers = [down, inside, nn.ReLU(True), up, nn.Tanh()]
        elif inside is None:
            layers = [nn.LeakyReLU(0.2, False), down, nn.ReLU(True), up, nn.BatchNorm2d(outer)]
        else:
            layers = [nn.LeakyReLU(0.2, False), down, nn.BatchNorm2d(inner), inside, nn.ReLU(True), up,
                      nn.BatchNorm2d(outer), nn.Dropout(0.5)]  # fmt: skip
        self.body = nn.Sequential(*(layer for layer in layers if layer is not None))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.outermost else torch.cat([x, self.body(x)], 1)


def pix2pix(*, seed: int = 0, batch: int = 2, width: int = 8) -> Case:
    """A nested U-Net with BatchNorm, leaky rectifiers and dropout."""

    def layers() -> nn.Module:
        inside = Nested(2 * width, 4 * width, Nested(4 * width, 4 * width, None))
        return Nested(3, width, Nested(width, 2 * width, inside), outermost=True)

    return made("pix2pix", layers, batch=batch, seed=seed, size=32)


class SuperResolution(nn.Module):
    """SRGAN's generator (Ledig et al. 2017): BatchNorm, one learned slope a layer, pixel shuffling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        conv = lambda a, b, k=3: nn.Conv2d(a, b, k, padding=k // 2, padding_mode="replicate")  # noqa: E731
        self.stem = nn.Sequential(conv(3, width, 5), nn.PReLU())
        norm = lambda: [conv(width, width), nn.BatchNorm2d(width)]  # noqa: E731
        self.blocks = nn.ModuleList(nn.Sequential(*norm(), nn.PReLU(), *norm()) for _ in range(2))
        self.grow = nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2), nn.PReLU(), conv(width, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return torch.tanh(self.grow(h + first))


def super_resolution(*, seed: int = 0, batch: int = 2) -> Case:
    """Twice as large images, with replication padding and PReLU."""
    return made("super_resolution", lambda: SuperResolution(16), batch=batch, seed=seed, size=16, factor=2)


class Modulated(nn.Module):
    """A convolution whose weights the style scales for each image, and normalizes again (Karras et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, style: int, *, upsample: bool) -> None:
        super().__init__()
        self.upsample, self.style = upsample, nn.Linear(style, inputs)
        nn.init.ones_(self.style.bias)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise, self.bias = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        batch, inputs = x.shape[:2]
        weight = self.weight * self.style(w)[:, None, :, None, None] / math.sqrt(9 * inputs)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        if self.upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding=1, groups=batch)
        x = x.view(batch, -1, *x.shape[2:])
        x = x + self.noise * torch.randn_like(x[:, :1]) + self.bias[:, None, None]
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


class StyleGenerator(nn.Module):
    """StyleGAN 2: noise (N, D) through a mapping network, styles into every convolution, images summed over scales."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__()
        self.mapping = nn.Sequential(
            nn.Linear(style, style), nn.LeakyReLU(0.2), nn.Linear(style, style), nn.LeakyReLU(0.2)
        )
        self.start = nn.Parameter(torch.randn(1, width, 4, 4))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [Modulated(width, width, style, upsample=True), Modulated(width, width, style, upsample=False)]
            )
            for _ in range(3)
        )
        self.colours = nn.ModuleList(nn.Conv2d(width, 3, 1) for _ in range(3))

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))
        x, image = self.start.expand(z.shape[0], -1, -1, -1), None
        for (grow, keep), colour in zip(self.layers, self.colours, strict=True):
            x = keep(grow(x, w), w)
            shown = colour(x)
            image = shown if image is None else shown + F.interpolate(image, scale_factor=2.0, mode="nearest")
        return image


def style_generator(*, seed: int = 0, batch: int = 4) -> Case:
    """A generator with modulated convolutions, before a linear judge."""
    torch.manual_seed(seed)
    model, judge = StyleGenerator(16, 32), torch.randn(3, 32, 32) / 32
    return Case(
        "style_generator",
        model,
        (torch.randn(batch, 32),),
        lambda x: F.softplus(-(x.float() * judge).sum((1, 2, 3))).mean(),
    )


BUILDERS: Sequence[Callable[..., Case]] = (cyclegan, pix2pix, super_resolution, style_generator)
