"""How much each codec loses: relative error ||x - decoded|| / ||x|| for values of several kinds, as a markdown table.

The last column is the optimum of Lloyd (1982) and Max (1960) for a scalar code of Gaussian values: no fixed code of as
many bits an element is better (the group codec is, a little, since it stores a range for every group as well).

With --scan the constants of the companded grids (fxapprox/codecs) are varied: how they were found.

Examples:

    python -m tools.codec_error
    python -m tools.codec_error --scan
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from fxapprox.codecs import Group, Like, Predicate, Threshold, Zero
from fxapprox.codecs import group as group_codec
from fxapprox.codecs import threshold as threshold_codec

BITS = (8, 4, 2)
SHAPE = (64, 16, 32, 32)
REACHES = (2.2, 2.6, 3, 3.5, 4, 4.5, 6, 8, 12, 20)  # deviations
KNEES = (1.8, 2.2, 2.6, 3, 3.5)  # where the compander bends, in deviations: k is (range / knee) squared


def gaussian() -> Tensor:
    """Standard normal values."""
    return torch.randn(SHAPE)


def softmaxed() -> Tensor:
    """Rows of attention weights: softmax of normal scores of deviation 2."""
    return torch.softmax(2 * torch.randn(SHAPE), -1)


def student(degrees: float) -> Tensor:
    """Heavy-tailed values; with 8 degrees of freedom as those before BatchNorm in a trained ResNet-20."""
    return torch.distributions.StudentT(degrees).sample(SHAPE)


VALUES: dict[str, Callable[[], Tensor]] = {
    "Gaussian": gaussian,
    "Student, 8 degrees": lambda: student(8.0),
    "Student, 3 degrees": lambda: student(3.0),
    "after GELU": lambda: F.gelu(gaussian()),
    "after ReLU": lambda: gaussian().relu(),
    "attention weights": softmaxed,
}


def group(x: Tensor, bits: int, *, uniform: bool = False, rounding: str = "nearest") -> Tensor:
    """Through the group codec."""
    codec = Group(bits, rounding, uniform=uniform)
    return codec.decode(codec.encode(x), Like.of(x))


def threshold(x: Tensor, bits: int) -> Tensor:
    """Through the threshold codec, with a threshold at zero and statistics per channel."""
    codec = Threshold(bits)
    shape = (1, x.shape[1], 1, 1)
    scale, shift = torch.ones(shape), torch.zeros(shape)
    return codec.decode_with(codec.encode_with(x, Predicate(x > 0, scale, shift)), Like.of(x))[0]


def zero(x: Tensor, bits: int) -> Tensor:
    """Through the zero codec: for values that are never negative."""
    codec = Zero(bits)
    return codec.decode_with(codec.encode_with(x, Predicate(x > 0)), Like.of(x))[0]


CODECS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "group": group,
    "group, uniform": lambda x, bits: group(x, bits, uniform=True),
    "group, stochastic": lambda x, bits: group(x, bits, rounding="stochastic"),
    "threshold": threshold,
    "zero": zero,
}


def relative_error(found: Tensor, x: Tensor) -> float:
    """||found - x|| / ||x||."""
    return float((found - x).norm() / x.norm())


def lloyd_max(bits: int, steps: int = 300) -> float:
    """The least relative error of a scalar code of 2**bits levels for standard normal values, by Lloyd's iteration."""
    grid = torch.linspace(-7, 7, 200_001, dtype=torch.float64)
    mass = torch.exp(-grid.square() / 2)
    mass /= mass.sum()
    # Panter & Dite (1951): at many bits the best levels are the quantiles of a Gaussian of deviation sqrt(3)
    levels = torch.special.ndtri((torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits) * 3**0.5
    cell = torch.zeros_like(grid, dtype=torch.int64)
    for _ in range(steps):
        cell = torch.bucketize(grid, (levels[1:] + levels[:-1]) / 2)
        weight = torch.zeros_like(levels).scatter_add_(0, cell, mass)
        total = torch.zeros_like(levels).scatter_add_(0, cell, mass * grid)
        levels = torch.where(weight > 0, total / weight.clamp_min(1e-300), levels)
    return float((mass * (grid - levels[cell]).square()).sum().sqrt())


def table() -> Iterator[str]:
    """The lines of the markdown table."""
    yield f"| codec | bits | {' | '.join(VALUES)} | optimum for Gaussian |"
    yield "|---" + "|---:" * (len(VALUES) + 2) + "|"
    for name, bits in track(list(itertools.product(CODECS, BITS)), description="codecs"):
        cells = [cell(CODECS[name], make, bits, only_positive=name == "zero") for make in VALUES.values()]
        yield f"| {name} | {bits} | {' | '.join(cells)} | {lloyd_max(bits):.2%} |"


def cell(codec: Callable[[Tensor, int], Tensor], make: Callable[[], Tensor], bits: int, *, only_positive: bool) -> str:
    """The error of one codec on values of one kind; "-" for values that it does not take."""
    torch.manual_seed(0)
    x = make()
    return "-" if only_positive and bool((x < 0).any()) else f"{relative_error(codec(x, bits), x):.2%}"


def scan() -> Iterator[str]:
    """The best constants found, and the error of those in use."""
    torch.manual_seed(0)
    values = [torch.randn(64, 8, 32, 32), torch.distributions.StudentT(8.0).sample((64, 8, 32, 32))]
    bells, few = torch.randn(400, 256), torch.randn(1600, 64)
    groups = [bells, few, values[1].view(-1, 256), F.gelu(bells), bells * (torch.rand(bells.shape) > 0.1)]
    for bits in BITS:
        ranges = [(reach, (reach / knee) ** 2) for reach in REACHES for knee in KNEES]
        yield from best("threshold: range, k", threshold_codec.GRID, bits, ranges, values, threshold)
        curves = list(itertools.product([0, 0.1, 0.4, 0.8, 1.2], [0, 0.125, 0.25, 0.4, 0.5, 0.6]))
        yield from best("group: k, margin", group_codec.CURVE, bits, curves, groups, group)


def best(
    title: str,
    constants: dict[int, tuple[float, float]],
    bits: int,
    tried: list[tuple[float, float]],
    values: list[Tensor],
    codec: Callable[[Tensor, int], Tensor],
) -> Iterator[str]:
    """The mean error over several values with the constants in use, and with the best of those tried."""

    def error(pair: tuple[float, float]) -> float:
        with patch.dict(constants, {bits: pair}):
            return sum(relative_error(codec(x, bits), x) for x in values) / len(values)

    used, errors = constants[bits], {pair: error(pair) for pair in tried}
    least = min(errors, key=errors.__getitem__)
    yield (
        f"{title}, {bits} bits: in use {used[0]:g}, {used[1]:g}: {error(used):.3%};"
        f" best of {len(tried)}: {least[0]:g}, {least[1]:.3g}: {errors[least]:.3%}"
    )


def main(scan_constants: Annotated[bool, typer.Option("--scan", help="scan the grids' constants")] = False) -> None:
    """Prints the table, or the scan."""
    for text in list(scan() if scan_constants else table()):
        print(text)


if __name__ == "__main__":
    typer.run(main)
