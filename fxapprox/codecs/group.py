"""The group codec: an affine code with its own range for every group of neighbouring elements.

As in ActNN (Chen et al. 2021, section 3.1) a group of elements shares a centre and a radius; unlike there, rounding to
the nearest uses a companded grid, which costs a root and cuts the error of Gaussian values at 4 bits by a tenth, and
rounding is unbiased only when asked for.

A group that holds a NaN or an infinity gives up three of its codes for them: they come out where they went in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import DISTORTION, Codec, Like
from fxapprox.codecs.grid import (
    compress,
    expand,
    finite,
    from_two_roots,
    round_to_bfloat16,
    roundings,
    two_roots,
    work_dtype,
)
from fxapprox.codecs.groups import from_groups, group_shape, groups_shape, in_memory_order, into_groups, stored
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.sizes import Size
from fxapprox.torch_adapter import small

SPECIALS = 3  # codes for -inf, NaN and inf, in this order
ROOT = {8: 4, 4: 2, 3: 2, 2: 2}  # that skewed codes take: nothing small may become 0 at 8 bits
# (k of the compander, how far the range ends beyond the outermost level, in steps): the least error over bell-shaped,
# heavy-tailed, one-sided and partly zero values (tools.errors codec --scan).
CURVE = {8: (0.8, 0.25), 4: (0.8, 0.125), 3: (0.8, 0.25), 2: (0.4, 0.4)}


@dataclass(frozen=True, slots=True)
class Group(Codec):
    """``bits`` per element, and an anchor (float32) and a radius (bfloat16) per group.

    The anchor is the range's centre. Skewed codes have theirs at the low end, and a radius in float32: both ends are
    exact, so that a softmax still adds up to one. Hollow codes have exact ends, and no levels nearer to the centre
    than any element is: where all of tanh's results are near -1 or 1, so are all levels, and 1 - y * y keeps its
    precision.

    Attributes:
        bits: 8, 4, 3 or 2.
        rounding: "nearest", or "stochastic": unbiased over a uniform grid. The random numbers are a hash of the
            value and its place, so no generator moves.
        uniform: equidistant levels, for values that are not bell-shaped (logits, and all that are never negative).
        skewed: levels close together at both ends, most at the low one, for softmaxes: most elements are small, and few
            hold the sum.
        hollow: a range without its middle, for what saturates at two ends; one more float32 per group says how wide.
        channels_last: codes of images lie in memory as channels-last images do; see ``groups``.

    Raises:
        OptionError: a parameter is not one of those.
    """

    label: ClassVar[str] = "group"
    distortion: ClassVar[Mapping[int, float]] = DISTORTION
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]
    rounding: str = "nearest"
    uniform: bool = False
    skewed: bool = False
    hollow: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        self.require("bits", *CURVE)
        self.require("rounding", "nearest", "stochastic")
        for name in ("uniform", "skewed", "channels_last"):
            self.require(name, True, False)

    @property
    def _curve(self) -> tuple[float, float]:
        flat = self.uniform or self.skewed or self.hollow or self.rounding == "stochastic"
        return (0.0, 0.0) if flat else CURVE[self.bits]

    @property
    def _low(self) -> bool:
        return self.skewed and self.rounding == "nearest"

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        k, margin = self._curve
        groups = into_groups(x, channels_last=self.channels_last).to(work_dtype(x))
        ok = finite(groups)
        low = torch.where(ok, groups, math.inf).amin(1, keepdim=True)
        high = torch.where(ok, groups, -math.inf).amax(1, keepdim=True)
        some = low <= high
        special = ~(groups.abs().amax(1, keepdim=True) < math.inf)  # a NaN is the largest of all
        anchor = in_memory_order(torch.where(some, low if self._low else low / 2 + high / 2, 0.0))
        reach = torch.where(some, high / 2 - low / 2, 0.0)
        hole = in_memory_order(self._hole(groups, ok, special, anchor, reach)) if self.hollow else None
        radius = in_memory_order(self._rounded(reach if hole is None else reach - hole))
        gain = in_memory_order(radius.to(groups.dtype).reciprocal())
        first, fine = self._levels(special, groups.dtype)

        v = torch.where(ok, groups, anchor) - anchor
        v = (v if hole is None else v - torch.copysign(hole, v)) * gain
        u = two_roots((v * 0.5).clamp(0, 1), ROOT[self.bits]) * 2 if self._low else compress(v.clamp(-1, 1), k) + 1
        nudge = 0.5 if self.rounding == "nearest" else self._dither(x)
        # never below the first level: u is at least 0, but for a curve's rounding, which is less than nudge - margin
        codes = (u * fine + (first + (nudge - margin))).floor().clamp_max(2**self.bits - 1)
        if hole is not None and self.rounding == "stochastic":  # not over the hole, which is no level wide
            middle = first + fine
            upper = torch.maximum(codes, middle.ceil()).clamp_max(2**self.bits - 1)  # of a lone level: itself
            codes = torch.where(v < 0, torch.minimum(codes, middle.ceil() - 1), upper)
        odd = torch.where(groups != groups, 1.0, torch.where(groups > 0, 2.0, 0.0))
        codes = torch.where(ok, codes, odd)
        packed = pack(codes, self.bits, within=True)
        wide = () if hole is None else (hole,)
        return stored(packed), anchor, stored(torch.where(special, -radius, radius)), *wide

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        packed, anchor, radius, *hole = parts
        margin = self._curve[1]
        shape = groups_shape(like.shape, channels_last=self.channels_last)
        codes = unpack(packed, self.bits, shape, within=True).to(anchor.dtype)
        lines = [(1 / fine, (margin - first) / fine - 1) for first, fine in self._choices]  # from codes to the grid
        (step, start, width), _ = group_decoder(anchor, radius, *itertools.chain(*lines))
        place = codes * step + start
        values = self._from_anchor(place) * width
        values = (values + torch.copysign(hole[0], place) if hole else values) + anchor
        below = -1 - lines[0][0] / 4  # the grid's end: the code that is nearest lies more than half a step beyond it
        values = torch.where(place < below, (codes - 1) * math.inf, values)  # of 0: NaN
        return like.restride(from_groups(values, like.shape, channels_last=self.channels_last))

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """Half a level to either side, a whole one with stochastic rounding, as wide as the grid is there."""
        packed, anchor, radius, *hole = parts
        margin = self._curve[1]
        shape = groups_shape(like.shape, channels_last=self.channels_last)
        codes = unpack(packed, self.bits, shape, within=True).to(anchor.dtype)
        first, fine = self._levels(radius < 0, anchor.dtype)
        reach = 0.5 if self.rounding == "nearest" else 1.0
        places = ((codes - first + margin + step) / fine - 1 for step in (-reach, 0.0, reach))
        low, at, high = (self._from_anchor(place.clamp(-1, 1)) for place in places)
        wide = torch.maximum(high - at, at - low) * radius.abs().to(anchor.dtype)
        far = anchor.abs() + radius.abs().to(anchor.dtype) + (hole[0] if hole else 0.0)
        slack = roundings(anchor.dtype, like.dtype) * far
        return from_groups(wide + slack, like.shape, channels_last=self.channels_last)

    def for_channels_last(self) -> Group:
        return replace(self, channels_last=True)

    def _dither(self, x: Tensor) -> Tensor:
        """What is added before rounding down: the same for an element in whatever order codes lie."""
        random = dither(into_groups(x, channels_last=False).to(work_dtype(x)))
        return into_groups(from_groups(random, x.shape, channels_last=False), channels_last=self.channels_last)

    def _hole(self, groups: Tensor, ok: Tensor, special: Tensor, anchor: Tensor, reach: Tensor) -> Tensor:
        """How far the levels stay away from the anchor; with the radius it makes up the reach, to the last bit."""
        near = torch.where(ok, (groups - anchor).abs(), math.inf).amin(1, keepdim=True)
        # a little less than the nearest element, which then has its level on its own side of the anchor
        rest = round_up(torch.maximum((reach - near) * (1 + 2**-7), reach * 2**-16)).to(groups.dtype)
        return torch.where(special | (near == math.inf), 0.0, (reach - rest).clamp_min(0))

    def _rounded(self, radius: Tensor) -> Tensor:
        """The radius as it is stored: never smaller, and never zero."""
        return radius.clamp_min(torch.finfo(torch.float32).tiny) if self._low else round_up(radius)

    def _from_anchor(self, u: Tensor) -> Tensor:
        """Where a place on the grid (-1 to 1) lies from the anchor, in radii."""
        return from_two_roots((u + 1) * 0.5, ROOT[self.bits]) * 2 if self._low else expand(u, self._curve[0])

    @property
    def _choices(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(the code of the lowest finite level, levels per unit of the grid), of a special group and of others."""
        # a lone level (2 bits, special) sits at the centre: it is then half a step above the end of the grid
        special, usual = (
            (float(taken), max((2**self.bits - 1 - taken) * 0.5 + self._curve[1], 0.25)) for taken in (SPECIALS, 0)
        )
        return special, usual

    def _levels(self, special: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Per group: the code of the lowest finite level, and levels per unit of the grid."""
        first, fine = (_either(special, pair, dtype) for pair in zip(*self._choices, strict=True))
        return first, fine

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        rows, size = group_shape(shape)
        width = 8 if dtype == torch.float64 else 4
        each = 2 * width if self._low else width + 2
        return packed_bytes((rows, size), self.bits) + rows * (each + (width if self.hollow else 0))


@small("Tensor anchor, Tensor radius, float special_step, float special_start, float step, float start", rows=3)
def group_decoder(
    anchor: Tensor, radius: Tensor, special_step: float, special_start: float, step: float, start: float
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What decoding needs of a group: (a code's step on the grid, where the grid starts, the radius)."""
    special = (radius < 0).to(anchor.dtype)
    steps, starts = special * (special_step - step) + step, special * (special_start - start) + start
    return (steps, starts, radius.abs().to(anchor.dtype)), ()


def _either(special: Tensor, numbers: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """A number for each group, in memory: the first for the special groups, the other one for the others."""
    one, other = numbers
    return in_memory_order(special.to(dtype) * (one - other) + other)


def round_up(radius: Tensor) -> Tensor:
    """The radius as a bfloat16 that is not smaller, and never zero."""
    limit = torch.finfo(torch.bfloat16)
    return round_to_bfloat16(radius.clamp(limit.tiny, limit.max), up=True).to(torch.bfloat16)


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
