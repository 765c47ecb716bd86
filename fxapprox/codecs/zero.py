"""The zero codec: a rectifier's output alone. Code 0 is exactly 0, and nothing positive ever becomes it.

So the same code holds max(z, 0) and the predicate z > 0. All other codes lie on the positive side, where a code with
levels on both sides would waste half of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import ALONE, DISTORTION, Carrier, Context, Like, Need
from fxapprox.codecs.grid import compress, expand, finite, roundings, work_dtype
from fxapprox.codecs.group import round_up
from fxapprox.codecs.groups import from_groups, group_shape, groups_shape, in_memory_order, into_groups, stored
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.sizes import Size
from fxapprox.torch_adapter import small

CURVE = {8: 0.8, 4: 0.8, 3: 1.0, 2: 1.0}


@dataclass(frozen=True, slots=True)
class Zero(Carrier):
    """``bits`` per element and one radius (bfloat16) per group; the value is never negative.

    In a group with NaN or infinity the two largest codes stand for them; a NaN counts as positive, as in a rectifier's
    derivative.

    Attributes:
        bits: 8, 4, 3 or 2.
        channels_last: codes of images lie in memory as channels-last images do; see ``groups``.

    Raises:
        OptionError: a parameter is not one of those.
    """

    label: ClassVar[str] = "zero"
    needs: ClassVar[tuple[Need, ...]] = (Need.REAL, Need.DECISION, Need.RECTIFIER)
    distortion: ClassVar[Mapping[int, float]] = DISTORTION
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]
    channels_last: bool = False

    def __post_init__(self) -> None:
        self.require("bits", *CURVE)
        self.require("channels_last", True, False)

    def encode(self, x: Tensor, context: Context = ALONE) -> tuple[Tensor, ...]:
        assert context.decision is not None
        groups = into_groups(x, channels_last=self.channels_last).to(work_dtype(x))
        upper = into_groups(context.decision.upper, channels_last=self.channels_last)
        ok = finite(groups)
        radius = in_memory_order(round_up(torch.where(ok, groups, 0.0).amax(1, keepdim=True)))
        special = ~ok.all(1, keepdim=True)
        top = in_memory_order(self._top(special, groups.dtype))
        gain = in_memory_order(radius.to(groups.dtype).reciprocal())
        u = compress((torch.where(ok, groups, 0.0) * gain).clamp(0, 1), CURVE[self.bits])
        codes = torch.minimum((u * top).floor().clamp_min(0) + 1, top)
        codes = torch.where(ok, codes, torch.where(groups != groups, top + 1, top + 2))
        codes = torch.where(upper | (groups != groups), codes, 0.0)
        return stored(pack(codes, self.bits, within=True)), stored(torch.where(special, -radius, radius))

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        packed, radius = parts
        codes = unpack(packed, self.bits, groups_shape(like.shape, channels_last=self.channels_last), within=True)
        place = codes.to(torch.float64 if like.dtype == torch.float64 else torch.float32)
        (top, step, width), _ = zero_decoder(radius, self.bits, place.dtype.itemsize)
        values = expand((place - 0.5) * step, CURVE[self.bits]) * width
        values = torch.where(place > top, (place - (top + 1)) * math.inf, values)  # of 0: NaN
        upper = codes > 0
        value, mask = (
            from_groups(groups, like.shape, channels_last=self.channels_last)
            for groups in (torch.where(upper, values, 0.0), upper)
        )
        return like.restride(value), mask

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """Half a level to either side, as wide as the grid is there; nothing where the decision is false."""
        packed, radius = parts
        codes = unpack(packed, self.bits, groups_shape(like.shape, channels_last=self.channels_last), within=True)
        place = codes.to(torch.float64 if like.dtype == torch.float64 else torch.float32)
        top = self._top(radius < 0, place.dtype)
        low, at, high = (expand(((place - end) / top).clamp(0, 1), CURVE[self.bits]) for end in (1.0, 0.5, 0.0))
        wide = torch.maximum(high - at, at - low) + roundings(place.dtype, like.dtype)
        wide = torch.where(codes > 0, wide * radius.abs().to(place.dtype), 0.0)
        return from_groups(wide, like.shape, channels_last=self.channels_last)

    def for_channels_last(self) -> Zero:
        return replace(self, channels_last=True)

    def _top(self, special: Tensor, dtype: torch.dtype) -> Tensor:
        """The largest code of a finite value, per group."""
        return (2**self.bits - 1) - special.to(dtype) * 2

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        rows, size = group_shape(shape)
        return packed_bytes((rows, size), self.bits) + rows * 2


@small("Tensor radius, int bits, int width", rows=3)
def zero_decoder(radius: Tensor, bits: int, width: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What decoding needs of a group: (the largest code of a finite value, a code's step on the grid, the radius).

    Args:
        width: bytes of a float here.
    """
    radius = radius.to(torch.float64 if width == 8 else torch.float32)
    top = (2**bits - 1) - (radius < 0).to(radius.dtype) * 2
    return (top, 1 / top, radius.abs()), ()
