"""The threshold codec: a normalized value and the decision taken on it, in one code of K bits.

Backward of conv-BN-ReLU needs the input x of the normalization, the rectified output, and the predicate z > 0 with
z = scale * w + shift affine in the standardized w = (x - mean) * rstd. One code stores all three (Chakrabarti &
Moseley 2019, section 3.2): codes below ``split`` are false, the others true, by construction; the grid starts at the
threshold; and its range follows from statistics that are stored anyway, so there are no scales per group.

What is different from the paper's fixed point code:

- the sign comes from forward's own predicate, not from comparing again, so it is right for every scale and shift
  (negative, zero, tiny; thresholds far outside the range);
- the levels are shared out between the two sides by how much of the (companded) range each side has;
- the grid is companded (see grid.py), and its range depends on the number of bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import Carrier, Like, Predicate
from fxapprox.codecs.grid import bend, finite, roundings, unbend, work_dtype
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.sizes import Size
from fxapprox.torch_adapter import materialize

# (reach, as a share of the channel's largest value; the least reach; the knee), in deviations: the least error over
# values from Gaussian ones to Student's with 3 degrees of freedom (tools/codec_error.py --scan).
GRID = {8: (1.1, 3.0, 2.0), 4: (0.65, 3.2, 3.0), 3: (0.4, 2.8, 3.5), 2: (0.05, 2.2, 5.0)}
TINY = 1e-30  # next to scale and shift: nothing
LOWEST = 2e-6 - 1  # place of a threshold on the grid


@dataclass(frozen=True, slots=True)
class Threshold(Carrier):
    """``bits`` per element; per channel the threshold's place (float32), its level (uint8), the grid's stretch
    (bfloat16), and mean and rstd.

    Where mean and rstd are a normalization's own, a channel with a NaN or an infinity decodes to NaN throughout, as
    they are NaN. Otherwise only its outermost levels do, which then hold what is not finite. Decisions stay exact.

    Attributes:
        bits: 8, 4, 3 or 2.
    """

    label: ClassVar[str] = "threshold"
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]

    def encode_with(self, x: Tensor, predicate: Predicate) -> tuple[Tensor, ...]:
        x = x.to(work_dtype(x))
        channel = _channel_shape(x, predicate)
        mean, rstd, ok = _statistics(x, predicate, channel)
        clean = None if ok is None else _all(ok, channel)
        stretch = stretch_of(x if ok is None else torch.where(ok, x, mean), mean, rstd, channel, self.bits)
        edge, flip = self._edge(predicate, mean, rstd, stretch)
        half = 2 ** (self.bits - 1)
        # levels for what is not finite: the outermost of each side, which then has at least two
        spare = 0 if clean is None else 1 - clean.to(torch.int32)
        cut = (edge * half + half).round().to(torch.int32)  # of a NaN: any level
        cut = materialize(cut.clamp(1, 2 * half - 1) if clean is None else cut.clamp(1 + spare, 2 * half - 1 - spare))
        split = cut.to(edge.dtype)
        # per channel: from places on the grid (-1 to 1) to levels, on either side of the threshold
        fine_above = materialize((2 * half - split) / (1 - edge).clamp_min(2e-6))
        fine_below = materialize(split / (1 + edge).clamp_min(2e-6))
        start = materialize(split - edge * fine_above)
        place = bend((x - mean) * materialize(rstd * flip / GRID[self.bits][2])) * materialize(stretch.to(x.dtype))
        upper = predicate.upper
        level = place * torch.where(upper, fine_above, fine_below) + torch.where(upper, start, fine_below)
        codes = level.floor().to(torch.int32)  # of a NaN: some integer, and the limits below make a code of it
        codes = codes.maximum(torch.where(upper, cut, spare)).minimum(torch.where(upper, 2 * half - 1 - spare, cut - 1))
        codes = codes if ok is None else torch.where(ok, codes, torch.where(upper, 2 * half - 1, 0))
        signed = (edge * 0.5 + 0.5) * flip
        flag = () if clean is None else (clean.to(torch.uint8),)
        return pack(codes, self.bits), cut.to(torch.uint8), signed, stretch, mean, rstd, *flag

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        packed, split, signed, stretch, mean, rstd, *clean = parts
        edge, cut, grain = signed.abs(), split.to(signed.dtype), stretch.to(signed.dtype).reciprocal()
        above, below = (1 - edge) * 2 / (2**self.bits - cut) * grain, edge * 2 / cut * grain
        start = (edge * 2 - 1) * grain + (0.5 - cut) * above
        gain = torch.sign(signed) * GRID[self.bits][2] / rstd
        cut, above, below, start, bottom, gain = map(materialize, (cut, above, below, start, below * 0.5 - grain, gain))
        codes = unpack(packed, self.bits, like.shape).to(signed.dtype)
        upper = codes >= cut
        place = codes * torch.where(upper, above, below) + torch.where(upper, start, bottom)
        values = unbend(place) * gain + mean
        return like.restride(torch.where(self._special(codes, clean[0]), math.nan, values) if clean else values), upper

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """Half a level to either side, as wide as the grid is there; a level at the grid's end holds what is beyond."""
        packed, split, signed, stretch, mean, rstd, *clean = parts
        edge, cut, grain = signed.abs(), split.to(signed.dtype), stretch.to(signed.dtype).reciprocal()
        codes = unpack(packed, self.bits, like.shape).to(signed.dtype)
        above, below = (1 - edge) * 2 / (2**self.bits - cut) * grain, edge * 2 / cut * grain
        low = torch.where(codes >= cut, (edge * 2 - 1) * grain + (codes - cut) * above, codes * below - grain)
        wide = torch.where(codes >= cut, above, below)
        far = cell_bound(low, low + wide, stretch, mean, rstd, self.bits, like.dtype)
        # next to the level for what is not finite: also what would lie in that one
        return torch.where(self._special(codes, clean[0], width=2), math.inf, far) if clean else far

    def _special(self, codes: Tensor, clean: Tensor, width: int = 1) -> Tensor:
        """Whether these are the outermost levels of a channel that is not clean."""
        return (clean == 0) & ((codes < width) | (codes >= 2**self.bits - width))

    def _edge(self, predicate: Predicate, mean: Tensor, rstd: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
        """The threshold's place on the grid (-1 to 1) turned so that "true" is above, and which way it is turned."""
        if predicate.scale is None or predicate.shift is None:
            scale, shift = rstd.reciprocal(), mean  # z is x itself
        elif predicate.mean is None:
            scale, shift = materialize(predicate.scale / rstd), materialize(predicate.scale * mean + predicate.shift)
        else:
            scale, shift = predicate.scale, predicate.shift
        scale, shift = scale.to(mean.dtype), shift.to(mean.dtype)
        # bend(-shift / |scale| / knee) without its division by zero: where scale is 0, all are true or all are false
        bent = (TINY - shift) / (scale.abs() * GRID[self.bits][2] + (shift.abs() + TINY))
        flip = torch.where(scale < 0, -1.0, 1.0).to(mean.dtype)
        # never the lowest place itself: its half would be 0, which cannot say which way it is turned
        return materialize((bent * stretch.to(mean.dtype)).clamp(LOWEST, 1)), flip

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        channels = math.prod(shape[d] for d in kept_dims(len(shape)))
        return packed_bytes(shape, self.bits) + channels * 7


def stretch_of(x: Tensor, mean: Tensor | None, rstd: Tensor, channel: Sequence[int], bits: int) -> Tensor:
    """By how much a bent value is stretched so that the grid ends at the channel's reach: bfloat16, above 1.

    The reach follows the channel's largest value, which tells heavy tails from light ones. Inductor takes it in the
    loop that takes mean and variance.
    """
    dims = _within(channel)
    high, low = (x.amax(dims, keepdim=True), x.amin(dims, keepdim=True)) if x.numel() else (rstd, rstd)
    most = torch.maximum(high - (0 if mean is None else mean), (0 if mean is None else mean) - low) * rstd
    most = torch.where(most < math.inf, most, 0.0)  # neither NaN: such a channel is NaN by its statistics
    share, least, knee = GRID[bits]
    return materialize((1 + knee / (most * share).clamp_min(least)).to(torch.bfloat16))


def cell_bound(
    low: Tensor, high: Tensor, stretch: Tensor, mean: Tensor | None, rstd: Tensor, bits: int, kept: torch.dtype
) -> Tensor:
    """From the middle of levels to their farther ends, in units of the value.

    Args:
        low, high: ends of the levels, bent.
        kept: the value's precision, in which forward took its decisions.
    """
    share, _, knee = GRID[bits]
    rough = stretch.to(rstd.dtype)
    end = (1 - 1e-5) / rough  # of the grid
    # the inverse of stretch_of: how far the channel's values go
    most = 1 / (rough - 1 - rough * torch.finfo(torch.bfloat16).eps).clamp_min(0) / min(share, 1)
    at = unbend((low + high) / 2)
    far = torch.where(high >= end, most, unbend(high.clamp(-1, 1)))
    near = torch.where(low <= -end, -most, unbend(low.clamp(-1, 1)))
    slack = 8 * roundings(rstd.dtype, kept) * (at.abs() * knee + 1)
    wide = (torch.maximum(far - at, at - near) * knee + slack) / rstd
    return wide if mean is None else wide + mean.abs() * roundings(rstd.dtype, kept)


def kept_dims(dims: int) -> tuple[int, ...]:
    """The channel dimension of a value that says nothing else: (N, C, *) or (..., C)."""
    return (1,) if dims >= 4 else (dims - 1,) if dims else ()


def _channel_shape(x: Tensor, predicate: Predicate) -> list[int]:
    """Shape of everything kept per channel: that of scale and shift, or one entry for each channel."""
    if predicate.scale is None or predicate.shift is None or predicate.scale.dim() == 0:
        keep = kept_dims(x.dim())
        return [size if d in keep else 1 for d, size in enumerate(x.shape)]
    shape = list(torch.broadcast_shapes(predicate.scale.shape, predicate.shift.shape))
    return [1] * (x.dim() - len(shape)) + shape


def _statistics(x: Tensor, predicate: Predicate, channel: list[int]) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean, rstd, and which elements are neither NaN nor infinite; None: mean and rstd are NaN where one is.

    Where not all are, mean and rstd are those of the channel with zeros in place of these.
    """
    if predicate.mean is not None and predicate.rstd is not None:
        # the normalization's own: one bad element has already made them bad
        return predicate.mean, predicate.rstd, None
    dims = _within(channel)
    ok = finite(x)
    values = torch.where(ok, x, 0.0)
    mean = values.mean(dims, keepdim=True)
    var = (values - mean).square().mean(dims, keepdim=True)
    return mean, torch.rsqrt(var + 1e-12 * (1 + mean * mean)), ok


def _all(ok: Tensor, channel: Sequence[int]) -> Tensor:
    return ok.to(torch.uint8).amin(_within(channel), keepdim=True) > 0


def _within(channel: Sequence[int]) -> list[int]:
    """The dimensions that a channel's elements are spread over."""
    return [d for d, size in enumerate(channel) if isinstance(size, int) and size == 1]
