"""The standard codec: a value that its own normalization standardizes, and no decision with it.

The input of a BatchNorm before a residual addition: the rstd of its channel is stored for backward anyway and gives the
code its scale, so that two bytes a channel are stored beside the codes. What backward reads is the input less its
mean; where the plan stores that, it needs no mean either. The grid is the threshold codec's, without a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import ALONE, DISTORTION, Codec, Context, Like, Need
from fxapprox.codecs.grid import bend, unbend, work_dtype
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.codecs.threshold import GRID, cell_bound, ends, kept_dims, stretch_of
from fxapprox.sizes import Size
from fxapprox.torch_adapter import small


@dataclass(frozen=True, slots=True)
class Standard(Codec):
    """``bits`` per element, and the normalization's own statistics, which are not stored twice.

    A channel with a NaN or an infinity decodes to NaN throughout: its rstd is one.

    Attributes:
        bits: 8, 4, 3 or 2.

    Raises:
        OptionError: another number of bits.
    """

    label: ClassVar[str] = "standard"
    needs: ClassVar[tuple[Need, ...]] = (Need.REAL, Need.STATISTICS)
    distortion: ClassVar[Mapping[int, float]] = DISTORTION
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        self.require("bits", *GRID)

    def encode(self, x: Tensor, context: Context = ALONE) -> tuple[Tensor, ...]:
        """The parts for ``x``: the codes, and the statistics given, which are of its channels."""
        rstd, mean = context.rstd, context.mean
        assert rstd is not None
        x = x.to(work_dtype(x))
        half = 2 ** (self.bits - 1)
        high, low = ends(x, rstd, [1] * (x.dim() - rstd.dim()) + list(rstd.shape))
        (gain, fine), (stretch,) = standard_encoder(
            None if mean is None else mean.to(work_dtype(mean)), rstd.to(work_dtype(rstd)), high, low, self.bits
        )
        place = bend((x if mean is None else x - mean) * gain) * fine
        codes = (place + half).floor().to(torch.int32).clamp(0, 2 * half - 1)  # of a NaN: any; its channel is NaN
        return pack(codes, self.bits), stretch, rstd, *(() if mean is None else (mean,))

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        packed, stretch, rstd, *mean = parts
        (step, start, gain), _ = standard_decoder(stretch, rstd.to(work_dtype(rstd)), self.bits)
        values = unbend(unpack(packed, self.bits, like.shape).to(rstd.dtype) * step + start) * gain
        return like.restride(values + mean[0] if mean else values)

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """Half a level to either side, as wide as the grid is there; the outermost levels hold what is beyond it."""
        packed, stretch, rstd, *mean = parts
        half = 2 ** (self.bits - 1)
        step = 1 / (half * stretch.to(rstd.dtype))
        low = (unpack(packed, self.bits, like.shape).to(rstd.dtype) - half) * step
        return cell_bound(low, low + step, stretch, mean[0] if mean else None, rstd, self.bits, like.dtype)

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        channels = math.prod(shape[d] for d in kept_dims(len(shape)))
        return packed_bytes(shape, self.bits) + channels * 2


@small("Tensor? mean, Tensor rstd, Tensor high, Tensor low, int bits", rows=2, kept=(torch.bfloat16,))
def standard_encoder(
    mean: Tensor | None, rstd: Tensor, high: Tensor, low: Tensor, bits: int
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What encoding needs of a channel, (gain, levels of a bent value's unit), and what is stored, (stretch,)."""
    stretch = stretch_of(mean, rstd, high, low, bits)
    return (rstd / GRID[bits][2], stretch.to(rstd.dtype) * 2 ** (bits - 1)), (stretch,)


@small("Tensor stretch, Tensor rstd, int bits", rows=3)
def standard_decoder(stretch: Tensor, rstd: Tensor, bits: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What decoding needs of a channel: (a level's step, the lowest level's place, gain)."""
    half = 2 ** (bits - 1)
    step = 1 / (half * stretch.to(rstd.dtype))
    return (step, (0.5 - half) * step, GRID[bits][2] / rstd), ()
