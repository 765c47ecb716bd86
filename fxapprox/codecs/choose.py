"""Which codec a value gets: the classes of values, the bits that each needs at least, and the table of codecs."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from fxapprox.codecs.base import Codec, Copy, Exact, Need
from fxapprox.codecs.complex import Complex
from fxapprox.codecs.group import Group
from fxapprox.codecs.mask import Integer, Mask
from fxapprox.codecs.standard import Standard
from fxapprox.codecs.threshold import Threshold
from fxapprox.codecs.zero import Zero


class Class(enum.Enum):
    """What a value needs when it is stored (the table in docs/design.md); the text is what reports print."""

    FREE = "free"
    DISCRETE = "discrete"
    STATISTIC = "statistic"
    LINEAR = "linear"
    SMOOTH = "smooth"
    ATTENTION = "attention"
    SOFTMAX = "softmax"
    SENSITIVE = "sensitive"


CODED = (Class.LINEAR, Class.SMOOTH, Class.ATTENTION, Class.SOFTMAX)  # the others are stored without loss
LEAST_BITS = {Class.LINEAR: 2, Class.SMOOTH: 4, Class.ATTENTION: 8, Class.SOFTMAX: 8}
# What measuring may go down to: attention's eight bits are caution, softmax's are not (its error is exponential).
FEWEST = {**LEAST_BITS, Class.ATTENTION: 4}


@dataclass(frozen=True, slots=True)
class Traits:
    """What the choice of a codec depends on.

    Attributes:
        kind: the value's class, one of ``CODED``.
        bits, rounding: that are asked for.
        offers: what the value has that a codec may need.
        nonnegative: whether no element can be below zero.
        weights: whether it is the output of a softmax.
        saturates: whether it ends at two limits, as tanh does.
    """

    kind: Class
    bits: int
    rounding: str
    offers: frozenset[Need]
    nonnegative: bool = False
    weights: bool = False
    saturates: bool = False

    def lacks(self, codec: Codec | type[Codec]) -> Need | None:
        """The first thing that a codec needs and the value has not."""
        return next((need for need in codec.needs if need not in self.offers), None)


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of the table: a codec for values that have what it needs, of these classes, with these traits."""

    codec: type[Codec]
    make: Callable[[Traits], Codec]
    kinds: tuple[Class, ...] = CODED
    when: Callable[[Traits], bool] = lambda value: True

    def fits(self, value: Traits) -> bool:
        """Whether the row is for this value."""
        return value.kind in self.kinds and value.lacks(self.codec) is None and self.when(value)


# The first row that fits counts.
TABLE = (
    Choice(Zero, lambda v: Zero(v.bits)),
    Choice(Threshold, lambda v: Threshold(v.bits)),
    Choice(Standard, lambda v: Standard(v.bits), (Class.LINEAR, Class.SMOOTH),
           lambda v: v.rounding == "nearest" and not v.nonnegative),
    Choice(Complex, lambda v: Complex(v.bits, v.rounding)),
    Choice(Group, lambda v: Group(v.bits, v.rounding, skewed=True),
           when=lambda v: v.weights and v.rounding == "nearest"),
    Choice(Group, lambda v: Group(v.bits, v.rounding, hollow=True), (Class.SMOOTH,), lambda v: v.saturates),
    Choice(Group, lambda v: Group(v.bits, v.rounding, uniform=True), when=lambda v: v.nonnegative),
    Choice(Group, lambda v: Group(v.bits, v.rounding, uniform=True), (Class.SOFTMAX,)),
    Choice(Group, lambda v: Group(v.bits, v.rounding), tuple(Class)),
)  # fmt: skip


@cache  # plan asks many thousand times, with few different traits
def choose(value: Traits) -> Codec:
    """The codec of a value of which an approximate copy will do."""
    return next(row.make(value) for row in TABLE if row.fits(value))


def lossless(dtype: torch.dtype | None, span: tuple[int, int] | None, *, copied: bool) -> Codec:
    """The smallest storage that loses nothing.

    Args:
        dtype: None for what is stored as it is.
        span: the range that integers are known to lie in.
        copied: whether the value as it is would be a copy.
    """
    exact = Copy() if copied else Exact()
    if dtype == torch.bool:
        return Mask()
    if dtype is None or span is None:
        return exact
    narrow = Integer(*span)
    return narrow if narrow.bits < dtype.itemsize * 8 else exact
