"""The probe: a value as it is, and beside it its codes in several numbers of bits, to be compared in backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.base import ALONE, Carrier, Codec, Context, Like, encoded
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.sizes import Size


@dataclass(frozen=True, slots=True)
class Probe(Carrier):
    """Stores the value exactly, the decision it carries as bits, and after them the codes; decodes to the exact value.

    Attributes:
        inner: the codec that is tried.
        tried: numbers of bits that it is tried with.
        carries: whether a decision is stored with the value.
    """

    label: ClassVar[str] = "probe"
    lossless: ClassVar[bool] = True
    inner: Codec
    tried: tuple[int, ...]
    carries: bool
    bits: int | None = None

    def encode(self, x: Tensor, context: Context = ALONE) -> tuple[Tensor, ...]:
        mask = () if context.decision is None else (pack(context.decision.upper, 1),)
        return x.clone(), *mask, *(part for codec in self._codecs for part in encoded(codec, x, context))

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(parts[0])

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        return like.restride(parts[0]), unpack(parts[1], 1, like.shape).to(torch.bool)

    def approximation(self, parts: Sequence[Tensor], like: Like, bits: int) -> Tensor:
        """The value as its code in so many bits gives it back."""
        rest = parts[2:] if self.carries else parts[1:]
        each, at = len(rest) // len(self.tried), self.tried.index(bits)
        codec, own = self._codecs[at], tuple(rest[at * each : (at + 1) * each])
        return codec.decode_with(own, like)[0] if self.carries else codec.decode(own, like)

    @property
    def _codecs(self) -> list[Any]:
        own = self.inner
        return [own if bits == own.bits else replace(own, bits=bits) for bits in self.tried]  # type: ignore[call-arg,type-var]

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        own = sum((codec.nbytes(shape, dtype) for codec in self._codecs), start=packed_bytes(shape, 1))
        return own + self.inner.nbytes(shape, dtype)
