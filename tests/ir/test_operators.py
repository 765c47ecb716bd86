"""Rows of the table of operators: what each says is held against gradients, without loss and at 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxapprox.codecs import Identity
from fxapprox.ir.operator_table import ROWS, TABLE
from tests.passes.graphs import training
from tools.zoo.training import gradients, relative


def test_an_operator_has_one_row() -> None:
    names = [name for names, _ in ROWS for name in names.split()]
    assert len(names) == len(set(names)) == len(TABLE)


WHERE = torch.tensor([[0.9, 0.2, 0.1], [-0.1, 0.8, 0.0]])


def sampled(h: Tensor) -> Tensor:
    grid = F.affine_grid(WHERE.expand(len(h), 2, 3), [*h.shape], align_corners=False)
    return F.grid_sample(h, grid + 0.01 * h.mean(1)[..., None], align_corners=False)


def fractional(h: Tensor) -> Tensor:
    return F.fractional_max_pool2d(h, 2, output_size=4, _random_samples=torch.full((len(h), 6, 2), 0.4))


def into_places(h: Tensor, reduce: str) -> Tensor:
    index = (torch.arange(len(h)) % 2).view(-1, 1, 1, 1).expand(h.shape)
    return torch.ones(2, *h.shape[1:]).scatter_reduce(0, index, h, reduce)


IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "max pool": lambda h: F.max_pool2d(h, 5, 1),
    "adaptive max pool": lambda h: F.adaptive_max_pool2d(h, 3),
    "fractional max pool": fractional,
    "adaptive average pool": lambda h: F.adaptive_avg_pool2d(h, (3, 5)),
    "replication": lambda h: F.pad(h, (1, 2, 0, 1), "replicate"),
    "reflection": lambda h: F.pad(h, (1, 2, 0, 1), "reflect"),
    "circular": lambda h: F.pad(h, (1, 2, 0, 1), "circular"),
    "bilinear": lambda h: F.interpolate(h, scale_factor=1.5, mode="bilinear"),
    "antialiased": lambda h: F.interpolate(h, scale_factor=0.6, mode="bicubic", antialias=True),
    "pixel shuffle": lambda h: F.pixel_unshuffle(h, 2),
    "patches": lambda h: F.fold(F.unfold(h, 3), (10, 10), 3),
    "sampling": sampled,
    "gated": lambda h: F.glu(h, 1),
    "rotated": lambda h: h.rot90(1, (2, 3)).roll(2, 3).tril(),
    "filled": lambda h: h.masked_fill(h.detach() > 1, 0.3),
    "scattered": lambda h: h.masked_scatter(h.detach() > 1, h.flip(0) * 2),
    "mean of places": lambda h: into_places(h, "mean"),
    "product of places": lambda h: into_places(h.sigmoid(), "prod"),
    "largest of places": lambda h: into_places(h, "amax"),
    "product": lambda h: h.sigmoid().prod(-1),
    "running product": lambda h: h.sigmoid().cumprod(2),
    "square of a running product": lambda h: (3 * h.sigmoid().cumprod(2)).square(),
}  # fmt: skip
VOLUMES: dict[str, Callable[[Tensor], Tensor]] = {
    "max pool": lambda h: F.max_pool3d(h, 2),
    "adaptive max pool": lambda h: F.adaptive_max_pool3d(h, 2),
    "adaptive average pool": lambda h: F.adaptive_avg_pool3d(h, 2),
    "average pool": lambda h: F.avg_pool3d(h, 2),
    "replication": lambda h: F.pad(h, (1, 1, 1, 0, 0, 1), "replicate"),
    "trilinear": lambda h: F.interpolate(h, scale_factor=1.5, mode="trilinear"),
    "sampling": lambda h: F.grid_sample(h, torch.tanh(h[:, :3].permute(0, 2, 3, 4, 1)), align_corners=False),
}
CASES = {f"{name}, 2d": (function, 2) for name, function in IMAGES.items()}
CASES |= {f"{name}, 3d": (function, 3) for name, function in VOLUMES.items()}


class Net(nn.Module):
    """A convolution, the function, and something that needs its values."""

    def __init__(self, function: Callable[[Tensor], Tensor], dims: int) -> None:
        super().__init__()
        self.function = function
        self.first = (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(3) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(torch.tanh(self.first(x))).flatten(1)
        h = h * self.scale.repeat(h.shape[1] // 3 + 1)[: h.shape[1]]
        return (h * torch.linspace(0.5, 1.5, h.shape[1])).square().mean()


@pytest.mark.parametrize("name", CASES)
def test_gradients_hold_without_loss_and_at_8_bits(name: str) -> None:
    torch.manual_seed(0)
    function, dims = CASES[name]
    model, x = Net(function, dims), torch.randn(4, 2, *(10,) * dims if dims == 2 else (6,) * dims)
    model(x).backward()
    train = training(model, x)
    exact, same, coded = train(bits=None), train(policy=lambda _: Identity()), train(bits=8)
    assert not [d for way in (exact, same, coded) for d in way.report.decisions if "unknown operator" in d.reason]
    assert relative(exact.gradient, gradients(model)) < 1e-5
    assert torch.equal(exact.gradient, same.gradient)
    assert coded.error(exact) < 0.02
