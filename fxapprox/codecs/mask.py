"""Decisions, without loss: one bit for a bool, and as few bits as the known range takes for an integer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import Codec, Like
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.errors import OptionError, shown
from fxapprox.sizes import Size


@dataclass(frozen=True, slots=True)
class Mask(Codec):
    """A bool in one bit; torch itself takes a byte."""

    label: ClassVar[str] = "1-bit mask"
    lossless: ClassVar[bool] = True
    bits: int | None = 1

    @property
    def text(self) -> str:
        return self.label

    def __post_init__(self) -> None:
        self.require("bits", 1)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (pack(x, 1),)

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(unpack(parts[0], 1, like.shape))

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return torch.zeros(())

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        return packed_bytes(shape, 1)


@dataclass(frozen=True, slots=True)
class Integer(Codec):
    """Whole numbers from a known range (pooling offsets, argmax, signs), in 1, 2, 4, 8, 16 or 32 bits.

    Attributes:
        low, high: the range, both ends included.

    Raises:
        OptionError: the range is empty, or not one of 64-bit integers.
    """

    label: ClassVar[str] = "integer"
    lossless: ClassVar[bool] = True
    low: int
    high: int

    def __post_init__(self) -> None:
        limit = torch.iinfo(torch.int64)
        whole = type(self.low) is int and type(self.high) is int
        if not whole or not limit.min <= self.low <= self.high <= limit.max:
            raise OptionError(
                f"Integer(low={shown(self.low)}, high={shown(self.high)}): expected the ends of a range of integers"
            )

    @property
    def bits(self) -> int:  # type: ignore[override]
        """The narrowest storage that holds every value of the range."""
        needed = max((self.high - self.low).bit_length(), 1)
        return next(width for width in (1, 2, 4, 8, 16, 32, 64) if width >= needed)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.bits <= 8:
            return (pack(x - self.low, self.bits),)
        # int16 and int32 are signed: centre the range
        return ((x - (self.low + 2 ** (self.bits - 1))).to(_SIGNED[self.bits]),)

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        if self.bits <= 8:
            return like.restride(unpack(parts[0], self.bits, like.shape).to(like.dtype) + self.low)
        return like.restride(parts[0].to(like.dtype) + (self.low + 2 ** (self.bits - 1)))

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return torch.zeros(())

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        return packed_bytes(shape, self.bits) if self.bits <= 8 else math.prod(shape) * self.bits // 8


_SIGNED = {16: torch.int16, 32: torch.int32, 64: torch.int64}
