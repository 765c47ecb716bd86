"""The group codec: an affine code with its own range for every group of neighbouring elements.

As in ActNN (Chen et al. 2021, section 3.1) a group of elements shares a centre and a radius; unlike there, rounding to
the nearest uses a companded grid, which costs a root and cuts the error of Gaussian values at 4 bits by a tenth, and
rounding is unbiased only when asked for.

A group that holds a NaN or an infinity gives up three of its codes for them: they come out where they went in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import Codec, Like
from fxapprox.codecs.grid import bend_low, compress, expand, finite, roundings, unbend_low, work_dtype
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.errors import OptionError
from fxapprox.sizes import Size
from fxapprox.torch_adapter import materialize

SMALLEST, LARGEST = 64, 256
NAN, MINUS_INF, PLUS_INF, SPECIALS = 0, 1, 2, 3
# (k of the compander, how far the range ends beyond the outermost level, in steps): the least error over bell-shaped,
# heavy-tailed, one-sided and partly zero values (tools/codec_error.py --scan).
CURVE = {8: (0.8, 0.25), 4: (0.8, 0.125), 3: (0.8, 0.25), 2: (0.4, 0.4)}


@dataclass(frozen=True, slots=True)
class Group(Codec):
    """``bits`` per element, and a centre (float32) and a radius (bfloat16) per group.

    Attributes:
        bits: 8, 4, 3 or 2.
        rounding: "nearest", or "stochastic": unbiased over a uniform grid. The random numbers are a hash of the
            value and its place, so no generator moves.
        uniform: equidistant levels, for values that are not bell-shaped (logits, and all that are never negative).
        skewed: levels close together at the low end, for attention weights: most are small, and few hold the sum.
    """

    label: ClassVar[str] = "group"
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]
    rounding: str = "nearest"
    uniform: bool = False
    skewed: bool = False

    def __post_init__(self) -> None:
        if self.bits not in CURVE:
            raise OptionError(f"Group(bits={self.bits!r}): expected 8, 4, 3 or 2")
        if self.rounding not in ("nearest", "stochastic"):
            raise OptionError(f'Group(rounding={self.rounding!r}): expected "nearest" or "stochastic"')

    @property
    def _curve(self) -> tuple[float, float]:
        return (0.0, 0.0) if self.uniform or self.skewed or self.rounding == "stochastic" else CURVE[self.bits]

    @property
    def _low(self) -> bool:
        return self.skewed and self.rounding == "nearest"

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        k, margin = self._curve
        groups = x.reshape(group_shape(x.shape)).to(work_dtype(x))
        ok = finite(groups)
        low = torch.where(ok, groups, math.inf).amin(1, keepdim=True)
        high = torch.where(ok, groups, -math.inf).amax(1, keepdim=True)
        some = low <= high
        special = ~ok.all(1, keepdim=True)
        centre = materialize(torch.where(some, low / 2 + high / 2, 0.0))
        radius = materialize(round_up(torch.where(some, high / 2 - low / 2, 0.0)))
        gain = materialize(radius.to(groups.dtype).reciprocal())
        top, offset, fine = self._levels(special, groups.dtype)

        v = ((torch.where(ok, groups, centre) - centre) * gain).clamp(-1, 1)
        nudge = 0.5 if self.rounding == "nearest" else dither(groups)
        place = (bend_low(v) if self._low else compress(v, k)) * fine + (fine - margin + nudge)
        codes = torch.minimum(place.floor().clamp_min(0), top) + offset
        infinity = torch.where(groups > 0, float(PLUS_INF), float(MINUS_INF))
        codes = torch.where(ok, codes, torch.where(groups != groups, float(NAN), infinity))
        return pack(codes.to(torch.int32), self.bits), centre, torch.where(special, -radius, radius)

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        packed, centre, radius = parts
        k, margin = self._curve
        codes = unpack(packed, self.bits, group_shape(like.shape)).to(centre.dtype)
        special = radius < 0
        _, offset, fine = self._levels(special, centre.dtype)
        step = materialize(fine.reciprocal())
        start = materialize((margin - offset) / fine - 1)
        place = codes * step + start
        values = (unbend_low(place) if self._low else expand(place, k)) * radius.abs().to(centre.dtype) + centre
        infinity = torch.where(codes == PLUS_INF, math.inf, -math.inf)
        odd = torch.where(codes == NAN, math.nan, infinity)
        values = torch.where(special & (codes < SPECIALS), odd, values)
        return like.restride(values.reshape(like.shape))

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """Half a level to either side, a whole one with stochastic rounding, as wide as the grid is there."""
        packed, centre, radius = parts
        k, margin = self._curve
        codes = unpack(packed, self.bits, group_shape(like.shape)).to(centre.dtype)
        _, offset, fine = self._levels(radius < 0, centre.dtype)
        reach = 0.5 if self.rounding == "nearest" else 1.0
        places = ((codes - offset + margin + step) / fine - 1 for step in (-reach, 0.0, reach))
        low, at, high = (unbend_low(p) if self._low else expand(p, k) for p in (p.clamp(-1, 1) for p in places))
        wide = torch.maximum(high - at, at - low) * radius.abs().to(centre.dtype)
        slack = roundings(centre.dtype, like.dtype) * (centre.abs() + radius.abs().to(centre.dtype))
        return (wide + slack).reshape(like.shape)

    def _levels(self, special: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Per group: the largest finite level, the code of level 0, and levels per unit of the grid."""
        margin = self._curve[1]
        taken = special.to(dtype) * SPECIALS
        top = (2**self.bits - 1) - taken
        # a lone level (2 bits, special) sits at the centre: level 0 is then half a step below the end of the grid
        fine = (top * 0.5 + margin).clamp_min(0.25)
        return materialize(top), materialize(taken), materialize(fine)

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        rows, size = group_shape(shape)
        width = 8 if dtype == torch.float64 else 4
        return packed_bytes((rows, size), self.bits) + rows * (width + 2)


def group_shape(shape: Sequence[Any]) -> tuple[Any, int]:
    """(groups, elements in each) for a value of this shape.

    A group is a run of trailing dimensions: for (N, C, H, W) the pixels of one channel, for (B, T, C) one row; from 64
    to 256 elements where the sizes allow it. Symbolic sizes only ever count groups.
    """
    trailing = 1
    lead = len(shape)
    while lead > 0 and isinstance(shape[lead - 1], int) and (trailing < SMALLEST):
        lead -= 1
        trailing *= shape[lead]
    size = trailing
    if trailing > LARGEST:
        size = max((d for d in range(SMALLEST, LARGEST + 1) if trailing % d == 0), default=trailing)
    size = max(size, 1)
    return math.prod(shape[:lead]) * (trailing // size), size


def round_up(radius: Tensor) -> Tensor:
    """The radius as a bfloat16 that is not smaller, and never zero."""
    limit = torch.finfo(torch.bfloat16)
    return (radius * (1 + 2**-8)).clamp(limit.tiny, limit.max).to(torch.bfloat16)


def dither(x: Tensor) -> Tensor:
    """Numbers in [0, 1) that look random: a hash of each value's bits and its place.

    No generator is read, so a user's random numbers stay where they are, and a recomputation repeats them.
    """
    place = torch.arange(x.shape[0], device=x.device, dtype=torch.int32).unsqueeze(1) * 40503
    place = place + torch.arange(x.shape[1], device=x.device, dtype=torch.int32) * 30011
    h = x.to(torch.float32).view(torch.int32) ^ (place * 73244475)
    for _ in range(2):  # two rounds of a xorshift-multiply hash
        h = (h ^ ((h >> 16) & 0xFFFF)) * 73244475
    h = h ^ ((h >> 16) & 0xFFFF)
    return (h & 0xFFFFFF).to(x.dtype) / 2**24
