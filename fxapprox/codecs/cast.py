"""A float in a narrower float: for values that need relative precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import Codec, Like
from fxapprox.errors import OptionError, shown
from fxapprox.sizes import Size


@dataclass(frozen=True, slots=True)
class Cast(Codec):
    """Rounds to another floating point type. Only bfloat16 has float32's range: others turn large values to inf.

    Attributes:
        to: bfloat16, float16, float8_e5m2 ... Infinities and NaNs survive in types that have them.
    """

    label: ClassVar[str] = "cast"
    to: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        ok = isinstance(self.to, torch.dtype) and self.to.is_floating_point
        if not ok or torch.finfo(self.to).max < 3e4 or torch.finfo(self.to).min > 0:
            raise OptionError(
                f"Cast(to={shown(self.to)}): expected a floating point type with infinities, e.g. torch.bfloat16"
            )

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits per element."""
        return self.to.itemsize * 8

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.to(self.to),)

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(parts[0])

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """Half a unit in the last place; beyond the type's largest number, any distance."""
        kept, limit = parts[0].double().abs(), torch.finfo(self.to)
        return torch.where(kept < limit.max, kept * limit.eps + limit.smallest_normal * limit.eps, torch.inf)

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        return math.prod(shape) * self.to.itemsize
