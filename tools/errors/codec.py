"""How much each codec loses, beside the least that a scalar code of as many bits can lose, as a markdown table.

The error is ||f(x) - f(decoded)|| / ||f(x)||, with f what backward makes of the stored value: itself, the value
standardized by its BatchNorm, or GELU. A weight's gradient is a product with f(x), g^T f(x), so that its expected
relative error is the same for gradients g that do not depend on x.

The optimum is that of Lloyd (1982) and Max (1960), by iteration over the very sample, f(x), all in one scale: no
fixed code of as many bits an element is better. Codecs with a range for every group or channel are, a little.

With --scan the constants of the grids (fxapprox/codecs) are varied: how they were found.

Examples:

    python -m tools.errors codec
    python -m tools.errors codec --scan
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from fxapprox.codecs import Context, Group, Like, Predicate, Standard, Threshold, Zero
from fxapprox.codecs import group as group_codec
from fxapprox.codecs import threshold as threshold_codec
from tools.harness import head, line

BITS = (8, 4, 3, 2)
SHAPE = (64, 16, 32, 32)


def as_it_is(x: Tensor, sample: Tensor) -> Tensor:
    """What backward makes of most values."""
    return x


def gelu(x: Tensor, sample: Tensor) -> Tensor:
    """The input of the next layer, computed again."""
    return F.gelu(x)


def standardized(x: Tensor, sample: Tensor) -> Tensor:
    """By the exact statistics of the sample."""
    mean, rstd = statistics(sample)
    return (x - mean) * rstd


@dataclass(frozen=True)
class Values:
    """One kind of value.

    Attributes:
        make: a sample.
        chosen: the codec that the plan takes for it.
        seen: what backward makes of a decoded value and the sample.
    """

    make: Callable[[], Tensor]
    chosen: str
    seen: Callable[[Tensor, Tensor], Tensor] = as_it_is


def student(degrees: float) -> Tensor:
    """Heavy-tailed values; with 8 degrees of freedom as those before BatchNorm in a trained ResNet-20."""
    return torch.distributions.StudentT(degrees).sample(SHAPE)


def channels(x: Tensor) -> Tensor:
    """With a scale and a shift for each channel, as the outputs of a convolution have them."""
    return x * (torch.randn(1, SHAPE[1], 1, 1) / 2).exp() + torch.randn(1, SHAPE[1], 1, 1)


def attention() -> Tensor:
    """Rows of attention weights: softmax of normal scores of deviation 2."""
    return torch.softmax(2 * torch.randn(SHAPE), -1)


def heads() -> Tensor:
    """q, k or v: (batch, heads, tokens, 64), each column with a scale of its own."""
    return torch.randn(16, 8, 128, 64) * (torch.randn(1, 8, 1, 64) / 3).exp()


VALUES = {
    "Gaussian": Values(lambda: torch.randn(SHAPE), "group"),
    "before BatchNorm and ReLU": Values(lambda: channels(student(8.0)), "threshold", standardized),
    "before BatchNorm alone": Values(lambda: channels(student(8.0)), "standard", standardized),
    "before GELU": Values(lambda: torch.randn(SHAPE), "group", gelu),
    "after ReLU": Values(lambda: torch.randn(SHAPE).relu(), "zero"),
    "attention weights": Values(attention, "group, skewed"),
    "q, k, v": Values(heads, "group"),
    "Student, 3 degrees": Values(lambda: student(3.0), "group"),
    "Student, 3 degrees, before BatchNorm": Values(lambda: channels(student(3.0)), "threshold", standardized),
}


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, rstd) of each channel, as BatchNorm takes them."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return mean, torch.rsqrt(var)


def group(x: Tensor, bits: int, **options: object) -> Tensor:
    """Through the group codec."""
    codec = Group(bits, **options)  # type: ignore[arg-type]
    return codec.decode(codec.encode(x), Like.of(x))


def threshold(x: Tensor, bits: int) -> Tensor:
    """Through the threshold codec: BatchNorm's weights around 1, its biases around 0."""
    torch.manual_seed(1)
    mean, rstd = statistics(x)
    scale, shift = torch.rand(1, x.shape[1], 1, 1) + 0.5, 0.3 * torch.randn(1, x.shape[1], 1, 1)
    upper = (x - mean) * rstd * scale + shift > 0
    codec = Threshold(bits)
    return codec.decode_with(codec.encode(x, Context(Predicate(upper, scale, shift), mean, rstd)), Like.of(x))[0]


def standard(x: Tensor, bits: int) -> Tensor:
    """Through the standard codec."""
    mean, rstd = statistics(x)
    return Standard(bits).decode(Standard(bits).encode(x, Context(mean=mean, rstd=rstd)), Like.of(x))


def zero(x: Tensor, bits: int) -> Tensor:
    """Through the zero codec: for values that are never negative."""
    codec = Zero(bits)
    return codec.decode_with(codec.encode(x, Context(Predicate(x > 0))), Like.of(x))[0]


CODECS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "group": group,
    "group, uniform": lambda x, bits: group(x, bits, uniform=True),
    "group, skewed": lambda x, bits: group(x, bits, skewed=True),
    "group, stochastic": lambda x, bits: group(x, bits, rounding="stochastic"),
    "threshold": threshold,
    "standard": standard,
    "zero": zero,
}


def relative_error(found: Tensor, x: Tensor) -> float:
    """||found - x|| / ||x||."""
    return float((found - x).norm() / x.norm())


def lloyd_max(x: Tensor, bits: int, steps: int = 200) -> float:
    """The least relative error of a scalar code of 2**bits levels for this sample, by Lloyd's iteration."""
    x = x.flatten().double().sort().values
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    levels = _first_levels(x, 2**bits)
    for _ in range(steps):
        cuts = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        cuts = torch.cat([cuts.new_zeros(1), cuts, cuts.new_tensor([len(x)])])
        count = cuts.diff()
        levels = torch.where(count > 0, sums[cuts].diff() / count.clamp_min(1), levels)
    return relative_error(levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)], x)


def _first_levels(x: Tensor, count: int) -> Tensor:
    """Quantiles of the cube root of the sorted sample's density, the best at many bits (Panter & Dite 1951)."""
    middle, places = x[len(x) // 2], torch.linspace(-1, 1, 20_001, dtype=x.dtype) ** 3
    edges = middle + places * torch.where(places < 0, middle - x[0], x[-1] - middle)
    width = edges.diff().clamp_min(1e-30)
    share = ((torch.searchsorted(x, edges).diff() / width) ** (1 / 3) * width).cumsum(0)
    wanted = (torch.arange(count, dtype=x.dtype) + 0.5) / count * share[-1]
    return edges[torch.searchsorted(share, wanted)]


def table() -> Iterator[str]:
    """The lines of the markdown table: error / optimum, the codec that the plan takes in bold."""
    yield head("codec", "bits", *VALUES)
    samples, best = {}, {}
    for name, values in VALUES.items():
        torch.manual_seed(0)
        samples[name] = values.make()
        for bits in BITS:
            best[name, bits] = lloyd_max(values.seen(samples[name], samples[name]), bits)
    for codec, bits in track(list(itertools.product(CODECS, BITS)), description="codecs"):
        cells = [cell(codec, values, samples[name], bits, best[name, bits]) for name, values in VALUES.items()]
        yield line(codec, f"{bits}", *cells)


def cell(codec: str, values: Values, x: Tensor, bits: int, best: float) -> str:
    """The error of one codec on values of one kind, and the optimum; "-" for values that it does not take."""
    if codec == "zero" and bool((x < 0).any()):
        return "-"
    error = relative_error(values.seen(CODECS[codec](x, bits), x), values.seen(x, x))
    return f"**{error:.2%}** / {best:.2%}" if codec == values.chosen else f"{error:.2%}"


def scan() -> Iterator[str]:
    """The best constants found, and the error of those in use."""
    torch.manual_seed(0)
    tails = [torch.randn(32, 8, 32, 32), *(student(degrees)[:32, :8] for degrees in (8.0, 5.0, 3.0))]
    bells, few = torch.randn(400, 256), torch.randn(1600, 64)
    groups = [bells, few, student(8.0).view(-1, 256), F.gelu(bells), bells * (torch.rand(bells.shape) > 0.1)]
    for bits in BITS:
        grids = itertools.product([0.05, 0.2, 0.4, 0.65, 0.8, 1.1], [2.2, 2.8, 3.2], [1.5, 2, 2.5, 3, 3.5, 5])
        yield from best("threshold: share, least, knee", threshold_codec.GRID, bits, list(grids), tails, standard)
        curves = list(itertools.product([0, 0.1, 0.4, 0.8, 1.2], [0, 0.125, 0.25, 0.4, 0.5, 0.6]))
        yield from best("group: k, margin", group_codec.CURVE, bits, curves, groups, group)


def best(
    title: str,
    constants: dict,
    bits: int,
    tried: list[tuple],
    values: list[Tensor],
    codec: Callable[[Tensor, int], Tensor],
) -> Iterator[str]:
    """The error over that of the optimum, mean over several values: with the constants in use, and the best tried."""
    least_errors = [lloyd_max(x, bits) for x in values]

    def error(used: tuple) -> float:
        with patch.dict(constants, {bits: used}):
            errors = [relative_error(codec(x, bits), x) for x in values]
        return sum(e / least for e, least in zip(errors, least_errors, strict=True)) / len(values)

    ratios = {used: error(used) for used in tried}
    least = min(ratios, key=ratios.__getitem__)
    used = constants[bits]
    yield f"{title}, {bits} bits: in use {used}: {error(used):.3f}; best of {len(tried)}: {least}: {ratios[least]:.3f}"


def main(scan_constants: Annotated[bool, typer.Option("--scan", help="scan the grids' constants")] = False) -> None:
    """Prints the table, or the scan."""
    for text in list(scan() if scan_constants else table()):
        print(text)
