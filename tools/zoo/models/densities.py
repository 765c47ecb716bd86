"""Networks that are densities, fields or operators on functions: flows, mixtures, splines, rays, spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case


class GlowStep(nn.Module):
    """Scale and shift by channel, a 1x1 convolution with its determinant, a coupling (Kingma and Dhariwal 2018)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.log_scale, self.shift = (nn.Parameter(0.1 * torch.randn(1, channels, 1, 1)) for _ in range(2))
        self.turn = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.network = nn.Sequential(
            nn.Conv2d(channels // 2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = x.shape[2] * x.shape[3]
        x = (x + self.shift) * torch.exp(self.log_scale)
        x = F.conv2d(x, self.turn[:, :, None, None])
        kept, changed = x.chunk(2, 1)
        scale, shift = self.network(kept).chunk(2, 1)
        scale = torch.sigmoid(scale + 2)
        volume = places * (self.log_scale.sum() + torch.linalg.slogdet(self.turn)[1])
        return torch.cat([kept, (changed + shift) * scale], 1), volume + scale.log().sum((1, 2, 3))


class Glow(nn.Module):
    """Images (N, 3, H, W), squeezed to 12 channels, to each one's log-likelihood per number."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(GlowStep(12, width) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        x, total = F.pixel_unshuffle(x, 2), torch.zeros(x.shape[0])
        for step in self.steps:
            x, volume = step(x)
            total = total + volume
        return (total - 0.5 * (x.square() + math.log(2 * math.pi)).sum((1, 2, 3))) / x[0].numel()


def glow(*, seed: int = 0, batch: int = 4) -> Case:
    """A flow on images."""
    torch.manual_seed(seed)
    return Case("glow", Glow(24, 2), (torch.randn(batch, 3, 16, 16),), lambda likelihood: -likelihood.mean())


class PlanarFlow(nn.Module):
    """x + u tanh(w x + b), many times over (Rezende and Mohamed 2015): (N, D) to log-likelihoods."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.w, self.u = (nn.Parameter(torch.randn(count, size) * size**-0.5) for _ in range(2))
        self.b = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[0])
        for w, u, b in zip(self.w, self.u, self.b, strict=True):
            inner = (w * u).sum()
            u = u + (F.softplus(inner) - 1 - inner) * w / w.square().sum()  # so that it can be inverted
            h = torch.tanh(x @ w + b)
            total = total + torch.log((1 + (1 - h.square()) * (u * w).sum()).abs() + 1e-6)
            x = x + h[:, None] * u
        return total - 0.5 * x.square().sum(1)


def planar_flow(*, seed: int = 0, batch: int = 2048) -> Case:
    """Planar flows in 16 dimensions."""
    torch.manual_seed(seed)
    return Case("planar_flow", PlanarFlow(16, 6), (torch.randn(batch, 16),), lambda likelihood: -likelihood.mean())


class SpectralConv(nn.Module):
    """Complex weights for the lowest frequencies of an image (Li et al. 2021)."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.low, self.high = (
            nn.Parameter(torch.randn(width, width, modes, modes, dtype=torch.cfloat) / width) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        spectrum, m = torch.fft.rfft2(x), self.modes
        low = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m, :m], self.low)
        high = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -m:, :m], self.high)
        middle = low.new_zeros(*low.shape[:2], x.shape[2] - 2 * m, m)
        kept = torch.cat([low, middle, high], 2)
        return torch.fft.irfft2(F.pad(kept, (0, spectrum.shape[3] - m)), s=x.shape[2:])


class FNO(nn.Module):
    """Fields (N, 1, H, W) to fields: spectral convolutions beside pointwise ones."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 1)
        self.spectral = nn.ModuleList(SpectralConv(width, modes) for _ in range(2))
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.leave = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (torch.linspace(0, 1, size) for size in x.shape[2:])
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(x.shape[0], -1, -1, -1)
        h = self.enter(torch.cat([x, grid], 1))
        for spectral, local in zip(self.spectral, self.local, strict=True):
            h = F.gelu(spectral(h.float()) + local(h))
        return self.leave(h)


def fno(*, seed: int = 0, batch: int = 4) -> Case:
    """A Fourier neural operator, with the relative error of fields as its loss."""
    torch.manual_seed(seed)
    model, x, wanted = FNO(16, 6), torch.randn(batch, 1, 24, 24), torch.randn(batch, 1, 24, 24)

    def loss(out: Tensor) -> Tensor:
        return ((out.float() - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).mean()

    return Case("fno", model, (x,), loss)


class MixtureDensity(nn.Module):
    """Weights, means and deviations of Gaussians, given (N, 4) (Bishop 1994); to log-likelihoods of (N, 2)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.body = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.ELU())
        self.head = nn.Linear(width, 5 * count)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits, means, spread = self.head(self.body(x)).split([self.count, 2 * self.count, 2 * self.count], -1)
        means, spread = (part.unflatten(-1, (self.count, 2)) for part in (means, F.softplus(spread) + 1e-3))
        each = -0.5 * ((y[:, None] - means) / spread).square() - spread.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(F.log_softmax(logits, -1) + each.sum(-1), -1)


def mixture_density(*, seed: int = 0, batch: int = 256) -> Case:
    """A mixture density network."""
    torch.manual_seed(seed)
    model, args = MixtureDensity(64, 8), (torch.randn(batch, 4), torch.randn(batch, 2))
    return Case("mixture_density", model, args, lambda likelihood: -likelihood.mean())


class SplineLayer(nn.Module):
    """Each edge has a function of its own, a sum of cubic B-splines and SiLU (Liu et al. 2024)."""

    def __init__(self, inputs: int, outputs: int, grid: int = 5) -> None:
        super().__init__()
        knots = torch.arange(-3, grid + 4) * (2 / grid) - 1
        self.register_buffer("knots", knots)
        self.base, self.norm = nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(inputs)
        self.weight = nn.Parameter(0.1 * torch.randn(outputs, inputs, grid + 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.base(F.silu(x)) + F.linear(self._bases(x).flatten(-2), self.weight.flatten(1))

    def _bases(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, inputs, grid + 3), by de Boor's recursion."""
        x, knots = x[..., None], self.knots
        bases = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
        for k in range(1, 4):
            left = (x - knots[: -k - 1]) / (knots[k:-1] - knots[: -k - 1])
            right = (knots[k + 1 :] - x) / (knots[k + 1 :] - knots[1:-k])
            bases = left * bases[..., :-1] + right * bases[..., 1:]
        return bases


class RationalLayer(nn.Module):
    """A linear layer behind one learned rational function, which has no poles (Molina et al. 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.above = nn.Parameter(torch.tensor([0.02, 0.6, 0.9, 0.2]))
        self.below = nn.Parameter(torch.tensor([0.1, 0.3]))
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.above, self.below
        above = a[0] + x * (a[1] + x * (a[2] + x * a[3]))
        return self.linear(above / (1 + (x * (b[0] + x * b[1])).abs()))


def kan(*, seed: int = 0, batch: int = 256) -> Case:
    """Learned functions on edges: splines, and a rational one."""
    torch.manual_seed(seed)
    model = nn.Sequential(SplineLayer(4, 24), SplineLayer(24, 24), RationalLayer(24, 1))
    x = 2 * torch.rand(batch, 4) - 1
    wanted = torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:2].square()) * x[:, 2:3]
    return Case("kan", model, (x,), lambda out: F.mse_loss(out.float(), wanted))


class RadianceField(nn.Module):
    """Rays (N, 6) to colours: density and colour at places along them, rendered (Mildenhall et al. 2020)."""

    def __init__(self, width: int, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.first = nn.Sequential(nn.Linear(39, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width + 39, width), nn.ReLU())
        self.density, self.colour = (
            nn.Linear(width, 1),
            nn.Sequential(nn.Linear(width + 3, 24), nn.ReLU(), nn.Linear(24, 3)),
        )

    def forward(self, rays: Tensor) -> Tensor:
        start, direction = rays.split(3, 1)
        depth = torch.linspace(0.5, 3, self.samples) + torch.rand(rays.shape[0], self.samples) * 2 / self.samples
        places = start[:, None] + depth[..., None] * direction[:, None]
        angles = (places[..., None] * 2.0 ** torch.arange(6)).flatten(-2)
        encoded = torch.cat([places, angles.sin(), angles.cos()], -1)
        h = self.second(torch.cat([self.first(encoded), encoded], -1))
        density = F.softplus(self.density(h).squeeze(-1) - 1)
        views = F.normalize(direction, dim=-1)[:, None].expand(-1, self.samples, -1)
        colour = torch.sigmoid(self.colour(torch.cat([h, views], -1)))
        opaque = 1 - torch.exp(-density * F.pad(depth.diff(dim=1), (0, 1), value=1.0))
        through = torch.cumprod(F.pad(1 - opaque + 1e-10, (1, 0), value=1.0)[:, :-1], 1)
        return ((through * opaque)[..., None] * colour).sum(1)


def radiance_field(*, seed: int = 0, batch: int = 64) -> Case:
    """A NeRF."""
    torch.manual_seed(seed)
    model, wanted = RadianceField(48, 16), torch.rand(batch, 3)
    rays = torch.cat([0.1 * torch.randn(batch, 3), F.normalize(torch.randn(batch, 3), dim=1)], 1)
    return Case("radiance_field", model, (rays,), lambda out: F.mse_loss(out.float(), wanted))


class SpatialTransformer(nn.Module):
    """Finds a turn of the image, samples it so, and classifies (Jaderberg et al. 2015); then samples with offsets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.find = nn.Sequential(
            nn.Conv2d(1, 8, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 10, 5), nn.AdaptiveMaxPool2d(3), nn.ReLU(),
            nn.Flatten(), nn.Linear(90, 16), nn.ReLU(), nn.Linear(16, 6),
        )  # fmt: skip
        nn.init.normal_(self.find[-1].weight, std=0.01)
        self.find[-1].bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.offsets = nn.Conv2d(width, 2, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 10))

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.find(x).view(-1, 2, 3), list(x.shape), align_corners=False)
        h = self.stem(F.grid_sample(x, grid, align_corners=False))
        moved = grid + 0.1 * torch.tanh(self.offsets(h)).permute(0, 2, 3, 1)
        return self.head(F.grid_sample(h, moved, padding_mode="border", align_corners=False))


def spatial_transformer(*, seed: int = 0, batch: int = 4) -> Case:
    """Images sampled at learned places."""
    torch.manual_seed(seed)
    model, x, labels = SpatialTransformer(8), torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
    return Case("spatial_transformer", model, (x,), lambda out: F.cross_entropy(out, labels))


BUILDERS: Sequence[Callable[..., Case]] = (
    glow, planar_flow, fno, mixture_density, kan, radiance_field, spatial_transformer,
)  # fmt: skip
