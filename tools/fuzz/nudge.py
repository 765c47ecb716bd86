"""A codec that moves every value by next to nothing: whatever decides on the value, or divides by it, shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs import ALONE, Carrier, Context, Like
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.sizes import Size


@dataclass(frozen=True, slots=True)
class Nudged(Carrier):
    """The value moved up or down, element by element; decisions without loss.

    Attributes:
        step: by how much, as a share of the largest element.
    """

    label: ClassVar[str] = "nudged"
    step: float = 1e-10
    bits: int | None = None

    def encode(self, x: Tensor, context: Context = ALONE) -> tuple[Tensor, ...]:
        flat = x.reshape(-1)
        signs = torch.arange(flat.shape[0], device=x.device) % 3 - 1
        most = torch.where(flat.abs() < math.inf, flat.abs(), 0.0).amax()
        moved = (flat + signs * (most * self.step + self.step)).reshape(x.shape).to(x.dtype)
        return moved, *(() if context.decision is None else (pack(context.decision.upper.to(torch.int32), 1),))

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(parts[0])

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        return like.restride(parts[0]), unpack(parts[1], 1, like.shape).to(torch.bool)

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        assert dtype is not None
        return math.prod(shape) * dtype.itemsize + packed_bytes(shape, 1)
