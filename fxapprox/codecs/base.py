"""What every codec offers, and the two that lose nothing and save nothing."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.errors import OptionError, shown
from fxapprox.sizes import Size
from fxapprox.torch_adapter import expression


@dataclass(frozen=True, slots=True)
class Like:
    """What ``decode`` has to give back: everything about the value but its elements.

    Attributes:
        shape: sizes, ints or SymInts.
        dtype: of the value.
        order: dimensions from the largest stride to the smallest; the decoded tensor is dense in this order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, order: Sequence[int] | None = None) -> Like:
        # a symbol that a guard has fixed since: a trace knows no symbol that is none of its inputs
        fixed = map(expression, x.shape)
        shape = (known if isinstance(known, int) else size for known, size in zip(fixed, x.shape, strict=True))
        return cls(tuple(shape), x.dtype, tuple(order if order is not None else range(x.dim())))

    @property
    def key(self) -> Hashable:
        """Equal for equal values; symbolic sizes themselves have no hash."""
        return tuple(map(expression, self.shape)), self.dtype, self.order

    def restride(self, x: Tensor) -> Tensor:
        """``x`` (of this shape) as a dense tensor with the strides of the value and its dtype."""
        x = x.to(self.dtype)
        if self.order == tuple(range(len(self.order))):
            return x.contiguous()
        dense = x.permute(self.order).contiguous()
        if any(known == 1 for known in map(expression, self.shape)):
            # contiguous() lets such a dimension have any stride; a library would not see that an image is channels-last
            dense = dense.view(dense.shape)
        return dense.permute([self.order.index(d) for d in range(len(self.order))])


@dataclass(frozen=True, slots=True)
class Predicate:
    """What a carrier is told of the decision it carries along with a value x.

    Attributes:
        upper: bool, shape of x: where z lies above its threshold. Computed by forward, never by us.
        scale, shift: z - threshold = scale * w + shift, with w the standardized x; broadcastable to x's shape.
            None where z is x itself.
        mean, rstd: w = (x - mean) * rstd, from the statistics of x's own normalization; None: measure them.
    """

    upper: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    mean: Tensor | None = None
    rstd: Tensor | None = None


class Codec:
    """Base of all codecs. Instances are frozen, hashable and compare by value.

    Attributes:
        label: how a report names it.
        lossless: whether ``decode`` gives back every bit.
        bits: bits per element, without scales; None where that depends on the value.
    """

    label: ClassVar[str] = "codec"
    lossless: ClassVar[bool] = False
    bits: int | None

    @property
    def text(self) -> str:
        """How a report names what is stored, e.g. "4-bit threshold"."""
        told = self.bits is None or isinstance(self, Exact) or self.label.startswith("1-bit")
        return self.label if told else f"{self.bits}-bit {self.label}"

    def require(self, name: str, *allowed: object) -> None:
        """Checks one of its parameters: the value and its type, as True equals 1, and 8.0 equals 8.

        Raises:
            OptionError: it is none of these.
        """
        value = getattr(self, name)
        if not any(type(value) is type(one) and value == one for one in allowed):
            *others, last = map(repr, allowed)
            expected = f"{', '.join(others)} or {last}" if others else last
            raise OptionError(f"{type(self).__name__}({name}={shown(value)}): expected {expected}")

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts to store for ``x``."""
        raise NotImplementedError

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """The value back from its parts."""
        raise NotImplementedError

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        """How far each element of a value may lie from what ``decode`` makes of its parts; infinity: any distance.

        Of the value's shape, or broadcastable to it. Follows from the grid alone, with a few roundings of floats on
        top. Elements that are not finite have none: they come back as the codec says.
        """
        raise NotImplementedError

    def for_channels_last(self) -> Codec:
        """The codec to take where images lie channels-last in memory: it gives the same values back."""
        return self

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        """Bytes of the parts for a value of this shape and dtype; an expression where a size is one."""
        raise NotImplementedError


class Carrier(Codec):
    """A codec whose code holds a value and one decision about it; the decision comes back bit by bit as it was."""

    def encode_with(self, x: Tensor, predicate: Predicate) -> tuple[Tensor, ...]:
        """The parts for ``x`` and ``predicate.upper``."""
        raise NotImplementedError

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        """(value, upper)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Exact(Codec):
    """The value as it is."""

    label: ClassVar[str] = "exact"
    lossless: ClassVar[bool] = True
    bits: int | None = None

    def __post_init__(self) -> None:
        self.require("bits", None)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return parts[0]

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return torch.zeros(())

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        return math.prod(shape) * dtype.itemsize if dtype is not None else 8


@dataclass(frozen=True, slots=True)
class Copy(Exact):
    """What lies in a larger piece of memory, copied out: it would keep all of it alive."""

    label: ClassVar[str] = "exact copy"

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.clone(),)


@dataclass(frozen=True, slots=True)
class Identity(Carrier):
    """Stores everything exactly, but through the same rewrite as a real codec: what the tests compare with."""

    label: ClassVar[str] = "identity"
    lossless: ClassVar[bool] = True
    bits: int | None = None

    def __post_init__(self) -> None:
        self.require("bits", None)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.clone(),)

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(parts[0])

    def encode_with(self, x: Tensor, predicate: Predicate) -> tuple[Tensor, ...]:
        return x.clone(), pack(predicate.upper, 1)

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        return like.restride(parts[0]), unpack(parts[1], 1, like.shape).to(torch.bool)

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return torch.zeros(())

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        assert dtype is not None
        return math.prod(shape) * dtype.itemsize + packed_bytes(shape, 1)
