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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import ALONE, DISTORTION, Carrier, Context, Like, Need
from fxapprox.codecs.grid import bend, finite, round_to_bfloat16, roundings, unbend, work_dtype
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.sizes import Size
from fxapprox.torch_adapter import small

# (reach, as a share of the channel's largest value; the least, if that value is as large; the knee), in deviations: the
# least error over values from Gaussian ones to Student's with 3 degrees of freedom (tools.errors codec --scan).
GRID = {8: (1.1, 3.0, 2.0), 4: (0.65, 3.2, 3.0), 3: (0.4, 2.8, 3.5), 2: (0.05, 2.2, 5.0)}
TINY = 1e-30  # next to scale and shift: nothing
SHORTEST = 1e-6  # reach of a grid, in deviations: that of a channel that is constant
LOWEST = 2e-6 - 1  # place of a threshold on the grid


@dataclass(frozen=True, slots=True)
class Threshold(Carrier):
    """``bits`` per element; per channel the threshold's place (float32), its level (uint8), the grid's stretch
    (bfloat16), and mean and rstd.

    Where mean and rstd are a normalization's own, a channel with a NaN or an infinity decodes to NaN throughout, as
    they are NaN. Otherwise only its outermost levels do, which then hold what is not finite. Decisions stay exact.

    Attributes:
        bits: 8, 4, 3 or 2.

    Raises:
        OptionError: another number of bits.
    """

    label: ClassVar[str] = "threshold"
    needs: ClassVar[tuple[Need, ...]] = (Need.REAL, Need.DECISION)
    distortion: ClassVar[Mapping[int, float]] = DISTORTION
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        self.require("bits", *GRID)

    def encode(self, x: Tensor, context: Context = ALONE) -> tuple[Tensor, ...]:
        predicate = context.decision
        assert predicate is not None
        x = x.to(work_dtype(x))
        channel = _channel_shape(x, context)
        mean, rstd, ok = _statistics(x, context, channel)
        wide_mean, wide_rstd = mean.to(work_dtype(mean)), rstd.to(work_dtype(rstd))
        clean = None if ok is None else _all(ok, channel)
        high, low = ends(x if ok is None else torch.where(ok, x, mean), rstd, channel)
        scale, shift = predicate.scale, predicate.shift
        if scale is None or shift is None:
            scale, shift = rstd.reciprocal(), mean  # z is x itself
        elif context.mean is None:
            scale, shift = scale / rstd, scale * mean + shift
        rows, kept = threshold_encoder(wide_mean, wide_rstd, scale, shift, high, low, clean, self.bits)
        gain, above, below, start, bottom, split = rows
        cut, signed, stretch = kept
        upper, last = predicate.upper, 2**self.bits - 1
        level = bend((x - mean) * gain) * torch.where(upper, above, below) + torch.where(upper, start, bottom)
        codes = level.floor().to(torch.int32)  # of a NaN: some integer, and the limits below make a code of it
        spare = 0 if clean is None else 1 - clean.to(level.dtype)
        least, most = torch.where(upper, split, spare), torch.where(upper, last - spare, split - 1)
        codes = codes.maximum(least.to(torch.int32)).minimum(most.to(torch.int32))
        codes = codes if ok is None else torch.where(ok, codes, torch.where(upper, last, 0))
        flag = () if clean is None else (clean.to(torch.uint8),)
        return pack(codes, self.bits), cut, signed, stretch, mean, rstd, *flag

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        packed, split, signed, stretch, mean, rstd, *clean = parts
        (cut, above, below, start, bottom, gain), _ = threshold_decoder(
            split, signed, stretch, rstd.to(work_dtype(rstd)), self.bits
        )
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

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        return self.nbytes_with(shape, dtype, None, own_statistics=False)

    def nbytes_with(
        self, shape: Sequence[Size], dtype: torch.dtype | None, channels: Size | None, *, own_statistics: bool
    ) -> Size:
        if channels is None:
            channels = math.prod(shape[d] for d in kept_dims(len(shape)))
        return packed_bytes(shape, self.bits) + channels * (16 if own_statistics else 7)


@small(
    "Tensor mean, Tensor rstd, Tensor scale, Tensor shift, Tensor high, Tensor low, Tensor? clean, int bits",
    rows=6,
    kept=(torch.uint8, None, torch.bfloat16),
)
def threshold_encoder(
    mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor, high: Tensor, low: Tensor, clean: Tensor | None, bits: int
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What encoding needs of a channel, (gain, above, below, start, bottom, split), and what is stored, (cut, signed,
    stretch).

    A bent value times ``above``, plus ``start``, is its level on the side where the decision is true; ``below`` and
    ``bottom`` are those of the other side, and levels from ``cut`` on are true (``split`` is the same as a float).
    ``signed`` is the threshold's place on the grid, from 0 to 1, negative where the grid is turned so that "true" is
    above.

    Args:
        scale, shift: z - threshold = scale * w + shift.
        high, low: the channel's ends.
        clean: bool, whether all elements are finite; the others get the outermost levels of either side.
    """
    stretch = stretch_of(mean, rstd, high, low, bits)
    half, knee, tight = 2 ** (bits - 1), GRID[bits][2], stretch.to(mean.dtype)
    scale, shift = scale.to(mean.dtype), shift.to(mean.dtype)
    # bend(-shift / |scale| / knee) without its division by zero: where scale is 0, all are true or all are false
    bent = (TINY - shift) / (scale.abs() * knee + (shift.abs() + TINY))
    # never the lowest place itself: its half would be 0, which cannot say which way it is turned
    edge = (bent * tight).clamp(LOWEST, 1)
    spare = 0 if clean is None else 1 - clean.to(torch.int32)
    # a side with a level to spare has at least two; of a NaN: any level
    cut = (edge * half + half).round().to(torch.int32).clamp(1 + spare, 2 * half - 1 - spare)
    split = cut.to(mean.dtype)
    # from places on the grid (-1 to 1) to levels, on either side of the threshold
    fine_above, fine_below = (2 * half - split) / (1 - edge).clamp_min(2e-6), split / (1 + edge).clamp_min(2e-6)
    gain, start = torch.copysign(rstd / knee, scale), split - edge * fine_above
    signed = torch.copysign(edge * 0.5 + 0.5, scale)
    return (gain, fine_above * tight, fine_below * tight, start, fine_below, split), (cut, signed, stretch)


@small("Tensor split, Tensor signed, Tensor stretch, Tensor rstd, int bits", rows=6)
def threshold_decoder(
    split: Tensor, signed: Tensor, stretch: Tensor, rstd: Tensor, bits: int
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What decoding needs of a channel: (cut, above, below, start, bottom, gain); see ``threshold_encoder``."""
    edge, cut, grain = signed.abs(), split.to(signed.dtype), 1 / stretch.to(signed.dtype)
    above, below = (1 - edge) * 2 / (2**bits - cut) * grain, edge * 2 / cut * grain
    start = (edge * 2 - 1) * grain + (0.5 - cut) * above
    gain = torch.copysign(GRID[bits][2] / rstd, signed)
    return (cut, above, below, start, below * 0.5 - grain, gain), ()


def ends(x: Tensor, rstd: Tensor, channel: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The largest and the smallest element of each channel; Inductor takes them in the loop of mean and variance."""
    dims = _within(channel)
    return (x.amax(dims, keepdim=True), x.amin(dims, keepdim=True)) if x.numel() else (rstd, rstd)


def stretch_of(mean: Tensor | None, rstd: Tensor, high: Tensor, low: Tensor, bits: int) -> Tensor:
    """By how much a bent value is stretched so that the grid ends at the channel's reach: above 1, fits a bfloat16.

    The reach follows the channel's largest value, which tells heavy tails from light ones.
    """
    most = torch.maximum(high - (0 if mean is None else mean), (0 if mean is None else mean) - low) * rstd
    most = torch.where(most < math.inf, most, 0.0)  # of what is not finite: such a channel is NaN by its statistics
    share, least, knee = GRID[bits]
    # a channel whose variance is next to its normalization's eps does not go so far as the least reach
    reach = torch.maximum(most * share, most.clamp_max(least)).clamp_min(SHORTEST)
    return round_to_bfloat16(1 + knee / reach)


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


def _channel_shape(x: Tensor, context: Context) -> list[int]:
    """Shape of everything kept per channel: that of scale and shift, or one entry for each channel."""
    predicate, mean = context.decision, context.mean
    if predicate is None or predicate.scale is None or predicate.shift is None or predicate.scale.dim() == 0:
        if mean is not None:
            return [1] * (x.dim() - mean.dim()) + list(mean.shape)
        keep = kept_dims(x.dim())
        return [size if d in keep else 1 for d, size in enumerate(x.shape)]
    shape = list(torch.broadcast_shapes(predicate.scale.shape, predicate.shift.shape))
    return [1] * (x.dim() - len(shape)) + shape


def _statistics(x: Tensor, context: Context, channel: list[int]) -> tuple[Tensor, Tensor, Tensor | None]:
    """mean, rstd, and which elements are neither NaN nor infinite; None: mean and rstd are NaN where one is.

    Where not all are, mean and rstd are those of the channel with zeros in place of these.
    """
    if context.mean is not None and context.rstd is not None:
        # the normalization's own: one bad element has already made them bad
        return context.mean, context.rstd, None
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
