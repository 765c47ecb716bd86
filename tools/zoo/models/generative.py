"""Networks that make images and signals: autoencoders, a GAN, diffusion, a flow, a network that is a signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tools.zoo.models import Case


class VAE(nn.Module):
    """A convolutional variational autoencoder (Kingma and Welling 2014): images (N, 3, 16, 16) to three tensors."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(32 * width, 2 * latent),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32 * width), nn.Unflatten(1, (2 * width, 4, 4)), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        sample = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(sample), mean, log_variance


def vae(*, seed: int = 0, batch: int = 4) -> Case:
    """A VAE with binary cross-entropy and the KL divergence of its code."""
    torch.manual_seed(seed)
    model, x = VAE(16, 8), torch.rand(batch, 3, 16, 16)

    def loss(found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        made, mean, log_variance = found
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return F.binary_cross_entropy_with_logits(made, x) + 1e-3 * divergence

    return Case("vae", model, (x,), loss)


class VQVAE(nn.Module):
    """Codes are the nearest entries of a book, gradients pass straight through (van den Oord et al. 2017)."""

    def __init__(self, width: int, entries: int) -> None:
        super().__init__()
        self.book = nn.Embedding(entries, width)
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), nn.ELU(), nn.Conv2d(width, width, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        nearest = torch.cdist(flat, self.book.weight).argmin(1)
        code = self.book(nearest).view(z.shape[0], z.shape[2], z.shape[3], -1).permute(0, 3, 1, 2)
        commitment = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(code.detach(), z)
        return self.decoder(z + (code - z).detach()), commitment


def vq_vae(*, seed: int = 0, batch: int = 4) -> Case:
    """A vector-quantized autoencoder."""
    torch.manual_seed(seed)
    model, x = VQVAE(16, 32), torch.rand(batch, 3, 16, 16)
    return Case("vq_vae", model, (x,), lambda found: F.mse_loss(found[0], x) + found[1])


def generator(width: int = 16, noise: int = 16) -> nn.Sequential:
    """DCGAN's (Radford et al. 2016): (N, noise) to images (N, 3, 16, 16)."""
    return nn.Sequential(
        nn.Unflatten(1, (noise, 1, 1)), nn.ConvTranspose2d(noise, 2 * width, 4), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def discriminator(width: int = 16) -> nn.Sequential:
    """Images (N, 3, 16, 16) to scores (N, 1)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.GroupNorm(4, 2 * width), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32 * width, 1),
    )  # fmt: skip


def realness(scores: Tensor, real: bool) -> Tensor:
    """Cross-entropy of scores for images that are all real, or all made."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))


class GAN(nn.Module):
    """Both losses of a GAN at once: each network's gradient is that of its own loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = generator(), discriminator()

    def forward(self, noise: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        made = self.generator(noise)
        told = realness(self.discriminator(images), True) + realness(self.discriminator(made.detach()), False)
        judge = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = realness(functional_call(self.discriminator, judge, (made,)), True)
        return told, fooled


def gan(*, seed: int = 0, batch: int = 4) -> Case:
    """Generator and discriminator; tests/tools/zoo/test_zoo.py trains the two with an optimizer each."""
    torch.manual_seed(seed)
    return Case("gan", GAN(), (torch.randn(batch, 16), torch.randn(batch, 3, 16, 16)), sum)


def time_embedding(times: Tensor, width: int) -> Tensor:
    """Sines and cosines of geometric frequencies: (N,) to (N, width)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=times.device) / (width // 2))
    angles = times[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimedBlock(nn.Module):
    """A residual block whose second normalization is scaled and shifted by the time."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.enter, self.leave = (nn.Conv2d(width, outputs, 3, padding=1) for width in (inputs, outputs))
        self.time = nn.Linear(time, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.second(self.enter(F.silu(self.first(x)))) * (1 + scale) + shift
        return self.skip(x) + self.leave(F.dropout(F.silu(h), 0.1, self.training))


class ImageAttention(nn.Module):
    """Attention over all positions of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unflatten(2, (3, 1, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + self.proj(out.unflatten(2, x.shape[2:]))


class DiffusionUNet(nn.Module):
    """Predicts the noise in images (N, 3, H, W) at times (N,), as in DDPM (Ho et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        time, self.width = 2 * width, width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.down = nn.ModuleList(TimedBlock(a, b, time) for a, b in pairwise((width, width, 2 * width)))
        self.middle, self.attention = TimedBlock(2 * width, 2 * width, time), ImageAttention(2 * width)
        self.up = nn.ModuleList(TimedBlock(a + b, b, time) for a, b in ((2 * width, 2 * width), (2 * width, width)))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        time = self.time(time_embedding(times, self.width))
        h, skips = self.stem(x), []
        for block in self.down:
            h = block(h, time)
            skips.append(h)
            h = F.avg_pool2d(h, 2)
        h = self.attention(self.middle(h, time))
        for block in self.up:
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1), time)
        return self.head(F.silu(h))


def diffusion_unet(*, seed: int = 0, batch: int = 4, width: int = 16, size: int = 16) -> Case:
    """One step of denoising diffusion."""
    torch.manual_seed(seed)
    model, clean = DiffusionUNet(width), torch.randn(batch, 3, size, size)
    noise = torch.randn(batch, 3, size, size)
    times = torch.randint(1000, (batch,))
    kept = torch.cos(times / 1000 * math.pi / 2).square()[:, None, None, None]
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    return Case("diffusion_unet", model, (noisy, times.float()), lambda found: F.mse_loss(found, noise))


class Coupling(nn.Module):
    """RealNVP's layer (Dinh et al. 2017): one half scales and shifts the other; keeps (N, D), adds log|det|."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(size // 2, width), nn.ReLU(), nn.Linear(width, size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.chunk(2, dim=1)
        scale, shift = self.network(kept).chunk(2, dim=1)
        scale = torch.tanh(scale)
        return torch.cat([changed * torch.exp(scale) + shift, kept], dim=1), scale.sum(1)


class Flow(nn.Module):
    """Couplings in a row: (N, D) to each example's log-likelihood (N,)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(size, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[0], device=x.device)
        for layer in self.layers:
            x, volume = layer(x)
            total = total + volume
        return total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1)


def flow(*, seed: int = 0, batch: int = 64) -> Case:
    """A normalizing flow on vectors of 16."""
    torch.manual_seed(seed)
    return Case("flow", Flow(16, 64), (torch.randn(batch, 16),), lambda likelihood: -likelihood.mean())


class Sine(nn.Module):
    """SIREN's layer (Sitzmann et al. 2020): sin(30 (W x + b))."""

    def __init__(self, inputs: int, outputs: int, spread: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.uniform_(self.linear.weight, -spread, spread)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


def siren(*, seed: int = 0, batch: int = 128, width: int = 48) -> Case:
    """An image as a function of coordinates."""
    torch.manual_seed(seed)
    spread = math.sqrt(6 / width) / 30
    hidden = [Sine(width, width, spread) for _ in range(2)]
    model = nn.Sequential(Sine(2, width, 0.5), *hidden, nn.Linear(width, 3))
    places, colours = 2 * torch.rand(batch, 2) - 1, torch.rand(batch, 3)
    return Case("siren", model, (places,), lambda found: F.mse_loss(found, colours))


BUILDERS: Sequence[Callable[..., Case]] = (vae, vq_vae, gan, diffusion_unet, flow, siren)
