"""Complex numbers as groups of reals: real and imaginary parts beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.bits import CODES
from fxapprox.codecs.base import DISTORTION, Codec, Like, Need
from fxapprox.codecs.group import Group
from fxapprox.sizes import Size


@dataclass(frozen=True, slots=True)
class Complex(Codec):
    """``bits`` for each real and each imaginary part, in groups as :class:`Group` makes them.

    Attributes:
        bits: 8, 4, 3 or 2.
        rounding: "nearest" or "stochastic".

    Raises:
        OptionError: a parameter is not one of those.
    """

    label: ClassVar[str] = "complex group"
    needs: ClassVar[tuple[Need, ...]] = (Need.COMPLEX,)
    distortion: ClassVar[Mapping[int, float]] = DISTORTION
    bits: int = 8  # pyright: ignore[reportIncompatibleVariableOverride]
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        self.require("bits", *CODES)
        self.require("rounding", "nearest", "stochastic")

    @property
    def _reals(self) -> Group:
        return Group(self.bits, self.rounding)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self._reals.encode(torch.view_as_real(x.resolve_conj()))

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(torch.view_as_complex(self._reals.decode(parts, _reals_of(like))))

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """Of the absolute value of what is off."""
        return self._reals.bound(parts, _reals_of(like)).norm(dim=-1)

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        return self._reals.nbytes((*shape, 2), _real_type(dtype))


def _real_type(dtype: torch.dtype | None) -> torch.dtype:
    return torch.float64 if dtype == torch.complex128 else torch.float32


def _reals_of(like: Like) -> Like:
    return Like((*like.shape, 2), _real_type(like.dtype), tuple(range(len(like.shape) + 1)))
