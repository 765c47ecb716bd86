"""What every codec offers, and the two that lose nothing and save nothing."""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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


class Need(enum.Enum):
    """What a codec asks of a value; the text says what a value lacks that has it not."""

    REAL = "real numbers"
    COMPLEX = "imaginary parts"
    STATISTICS = "statistics that are stored anyway"
    DECISION = "a decision that its code could carry"
    RECTIFIER = "a rectifier that makes it"


@dataclass(frozen=True, slots=True)
class Predicate:
    """A decision that is carried along with a value x.

    Attributes:
        upper: bool, shape of x: where z lies above its threshold. Computed by forward, never by us.
        scale, shift: z - threshold = scale * w + shift, with w the standardized x; broadcastable to x's shape.
            None where z is x itself.
    """

    upper: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a codec is given in forward besides a value x.

    Attributes:
        decision: what its code is to carry.
        mean, rstd: the statistics of x's own normalization, w = (x - mean) * rstd, broadcastable to x's shape. No mean
            where x is centred; neither where it has no such normalization.
    """

    decision: Predicate | None = None
    mean: Tensor | None = None
    rstd: Tensor | None = None


ALONE = Context()
# The squared relative error of Gaussian values in our codes, by their bits (tools/codec_error.py).
DISTORTION: Mapping[int, float] = {8: 0.006**2, 4: 0.1**2, 3: 0.19**2, 2: 0.36**2}


class Codec:
    """Base of all codecs. Instances are frozen, hashable and compare by value.

    Attributes:
        label: how a report names it.
        lossless: whether ``decode`` gives back every bit.
        needs: what it asks of a value. One that needs more than numbers of some kind takes a second argument to
            ``encode``: a ``Context``, with what it needs.
        distortion: {bits: squared relative error of a Gaussian value}, for all numbers of bits that its parameter
            ``bits`` takes; empty: the number is not ours to choose.
        bits: bits per element, without scales; None where that depends on the value.
    """

    label: ClassVar[str] = "codec"
    lossless: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = (Need.REAL,)
    distortion: ClassVar[Mapping[int, float]] = {}
    bits: int | None

    @property
    def text(self) -> str:
        """How a report names what is stored, e.g. "4-bit threshold"."""
        return self.label if self.bits is None else f"{self.bits}-bit {self.label}"

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

    def encode(self, x: Tensor, context: Context = ALONE) -> tuple[Tensor, ...]:
        """The parts for ``x``, and for ``context.decision`` where there is one."""
        raise NotImplementedError

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        """(value, upper), of parts that carry a decision."""
        raise NotImplementedError

    def nbytes_with(
        self, shape: Sequence[Size], dtype: torch.dtype | None, channels: Size | None, *, own_statistics: bool
    ) -> Size:
        """Bytes of the parts that carry a decision.

        Args:
            channels: how many there are with a threshold of their own; None: as many as the shape says.
            own_statistics: whether mean and rstd are kept as well; those of a normalization are stored anyway.
        """
        return self.nbytes(shape, dtype)


def encoded(codec: Codec, x: Tensor, context: Context) -> tuple[Tensor, ...]:
    """The parts for ``x``; a codec that is to be told nothing need not have a parameter for it."""
    encode: Any = codec.encode
    return encode(x) if context is ALONE else encode(x, context)


@dataclass(frozen=True, slots=True)
class Exact(Codec):
    """The value as it is."""

    label: ClassVar[str] = "exact"
    lossless: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ()
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
    needs: ClassVar[tuple[Need, ...]] = ()
    bits: int | None = None

    def __post_init__(self) -> None:
        self.require("bits", None)

    def encode(self, x: Tensor, context: Context = ALONE) -> tuple[Tensor, ...]:
        return x.clone(), *(() if context.decision is None else (pack(context.decision.upper, 1),))

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(parts[0])

    def decode_with(self, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, Tensor]:
        return like.restride(parts[0]), unpack(parts[1], 1, like.shape).to(torch.bool)

    def bound(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return torch.zeros(())

    def nbytes(self, shape: Sequence[Size], dtype: torch.dtype | None) -> Size:
        assert dtype is not None
        return math.prod(shape) * dtype.itemsize + packed_bytes(shape, 1)
