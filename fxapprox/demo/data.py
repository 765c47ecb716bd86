"""A generated image data set: which of ten shapes is drawn in the picture?

Every image shows one large shape of its class, brighter than the smoothly varying background behind it, with
two small distractors (discs and bars) and noise. Position, size, rotation, colours, and the texture of shape
and background are random, so that single pixels say little (a linear classifier gets about one image in five
right) and a small convolutional network has to learn outlines. Shapes are signed distance functions,
evaluated on the pixel grid for all images of a class at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 32
CHANNELS = 3


@dataclass(frozen=True)
class Dataset:
    """Images and their classes.

    Attributes:
        images: (N, 3, 32, 32) float32, zero mean per image and channel, unit variance per image.
        labels: (N,) int64, the index of the class in `CLASSES`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def generate(count: int, *, seed: int) -> Dataset:
    """`count` images, the same for the same seed.

    Classes come in random order and are equally frequent, up to one image.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randperm(count, generator=rng) % len(CLASSES)
    shape = _coverage(_shape_distance(labels, rng))
    scene = _texture(count, rng)
    for _ in range(2):
        scene = torch.lerp(scene, _texture(count, rng), _coverage(_distractor_distance(count, rng)))
    scene = torch.lerp(scene, _contrasting(scene, shape, rng), shape)
    noise = _uniform(rng, count, 0.1, 0.4) * torch.randn(scene.shape, generator=rng)
    return Dataset(_standardize(scene + noise), labels)


def _uniform(rng: torch.Generator, count: int, low: float, high: float, channels: int = 1) -> Tensor:
    """One number per image and channel, (count, channels, 1, 1)."""
    return low + (high - low) * torch.rand(count, channels, 1, 1, generator=rng)


def _grid() -> tuple[Tensor, Tensor]:
    """Pixel coordinates x and y from -1 to 1, (1, 1, SIZE, SIZE) each."""
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None, None], y[None, None]


def _placed(rng: torch.Generator, count: int, *, spread: float) -> tuple[Tensor, Tensor]:
    """Pixel coordinates seen from randomly shifted and rotated objects, (count, 1, SIZE, SIZE) each."""
    x, y = _grid()
    x = x - _uniform(rng, count, -spread, spread)
    y = y - _uniform(rng, count, -spread, spread)
    angle = _uniform(rng, count, 0, 2 * math.pi)
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _coverage(distance: Tensor) -> Tensor:
    """How much of each pixel an object covers, from the signed distance to its outline (negative inside)."""
    return (0.5 - distance * (SIZE / 2)).clamp(0, 1)


def _standardize(images: Tensor) -> Tensor:
    """Zero mean per image and channel, unit variance per image."""
    images = images - images.mean((2, 3), keepdim=True)
    return images / images.std((1, 2, 3), keepdim=True)


def _texture(count: int, rng: torch.Generator) -> Tensor:
    """A random colour with a sinusoidal grating of random direction and period, (count, 3, SIZE, SIZE)."""
    x, _ = _placed(rng, count, spread=1)
    frequency = _uniform(rng, count, 1, 10)
    strength = _uniform(rng, count, -0.4, 0.4, CHANNELS)
    return _uniform(rng, count, -1.5, 1.5, CHANNELS) + strength * (x * frequency).sin()


def _contrasting(scene: Tensor, shape: Tensor, rng: torch.Generator) -> Tensor:
    """A texture for the shape, brighter by a visible step than the mean colour it covers."""
    count = len(scene)
    covered = (scene * shape).sum((2, 3), keepdim=True) / shape.sum((2, 3), keepdim=True).clamp(min=1)
    direction = torch.rand(count, CHANNELS, 1, 1, generator=rng)
    step = direction / direction.norm(dim=1, keepdim=True) * _uniform(rng, count, 0.7, 2.0)
    texture = _texture(count, rng)
    return covered + step + 0.5 * (texture - texture.mean((2, 3), keepdim=True))


def _distractor_distance(count: int, rng: torch.Generator) -> Tensor:
    """Small discs and bars anywhere in the image."""
    x, y = _placed(rng, count, spread=1)
    disc = torch.hypot(x, y) - _uniform(rng, count, 0.08, 0.2)
    bar = _box(x, y, _uniform(rng, count, 0.2, 0.5), 0.06)
    return torch.where(_uniform(rng, count, 0, 1) < 0.5, disc, bar)


def _shape_distance(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Signed distance to the outline of each image's shape, (N, 1, SIZE, SIZE)."""
    count = len(labels)
    x, y = _placed(rng, count, spread=0.25)
    scale = _uniform(rng, count, 0.45, 0.8)
    x, y = x / scale, y / scale
    distance = torch.empty_like(x)
    for label, outline in enumerate(CLASSES.values()):
        chosen = labels == label
        distance[chosen] = outline(x[chosen], y[chosen])
    return distance * scale


def _box(x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.85


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - 0.2


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.78, 0.78)


def _frame(x: Tensor, y: Tensor) -> Tensor:
    return (_box(x, y, 0.68, 0.68)).abs() - 0.18


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return _regular(x, y, corners=3, inradius=0.5)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 1.0, 0.28), _box(x, y, 0.28, 1.0))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.8 - torch.hypot(x - 0.45, y))


def _half_disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x - 0.4, y) - 1.0, x - 0.4)


def _corner(x: Tensor, y: Tensor) -> Tensor:
    """Two bars that meet at a right angle."""
    return torch.minimum(_box(x, y + 0.65, 0.9, 0.25), _box(x + 0.65, y, 0.25, 0.9))


def _star(x: Tensor, y: Tensor) -> Tensor:
    """A five-pointed star: radius varies linearly with the angle between the tips."""
    sector = 2 * math.pi / 5
    from_tip = (torch.remainder(torch.atan2(y, x), sector) - sector / 2).abs() / (sector / 2)
    return (torch.hypot(x, y) - 0.42 - 0.68 * from_tip) * 0.6


def _regular(x: Tensor, y: Tensor, corners: int, inradius: float) -> Tensor:
    """A regular polygon: the largest of the distances to its sides."""
    sector = 2 * math.pi / corners
    from_middle = torch.remainder(torch.atan2(y, x), sector) - sector / 2
    return torch.hypot(x, y) * from_middle.cos() - inradius


CLASSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "cross": _cross,
    "crescent": _crescent,
    "half disc": _half_disc,
    "corner": _corner,
    "star": _star,
}
