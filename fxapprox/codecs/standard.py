"""The standard codec: a value that its own normalization standardizes, and no decision with it.

The input of a BatchNorm before a residual addition: the rstd of its channel is stored for backward anyway and gives the
code its range, so nothing is stored beside the codes. What backward reads is the input less its mean; where the plan
stores that, it needs no mean either. The grid is the threshold codec's, without a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import Codec, Like
from fxapprox.codecs.grid import compress, expand, work_dtype
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.codecs.threshold import GRID, grid
from fxapprox.errors import OptionError
from fxapprox.torch_adapter import materialize


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
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if self.bits not in GRID:
            raise OptionError(f"Standard(bits={self.bits!r}): expected 8, 4, 3 or 2")

    def encode_with(self, x: Tensor, rstd: Tensor, mean: Tensor | None = None) -> tuple[Tensor, ...]:
        """The parts for ``x``: the codes, and the statistics given, of its channels and broadcastable to its shape.

        Args:
            mean: None where ``x`` is centred.
        """
        x = x.to(work_dtype(x))
        reach, k = grid(self.bits, x.shape, rstd.shape)
        half = 2 ** (self.bits - 1)
        centred = x if mean is None else x - mean
        place = compress((centred * materialize(rstd / reach)).clamp(-1, 1), k)
        codes = (place * half + half).to(torch.int32).clamp(0, 2 * half - 1)  # of a NaN: any code; it decodes to NaN
        return pack(codes, self.bits), rstd, *(() if mean is None else (mean,))

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        packed, rstd, *mean = parts
        reach, k = grid(self.bits, like.shape, rstd.shape)
        half = 2 ** (self.bits - 1)
        place = unpack(packed, self.bits, like.shape).to(rstd.dtype) * (1 / half) + (0.5 / half - 1)
        values = expand(place, k) * materialize(reach / rstd)
        return like.restride(values + mean[0] if mean else values)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype | None) -> int:
        return packed_bytes(shape, self.bits)
