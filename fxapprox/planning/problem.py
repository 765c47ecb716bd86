"""What can be stored for backward, in which codec and at what cost: the problem that ``plan`` solves.

Each forward value can be had in backward at two levels, exact or approximate. It is had by storing it, by recomputing
it from its operands (at the level that its operator asks for), or because it is alive anyway.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from fxapprox.bits import DEFAULT
from fxapprox.codecs import Carrier, Codec, Copy, Exact, Group, Integer, Mask, Need, Threshold
from fxapprox.codecs.choose import LEAST_BITS, Class, Traits, choose, lossless
from fxapprox.errors import OptionError
from fxapprox.ir.records import Activation, Affine, Use
from fxapprox.options import Options
from fxapprox.sizes import Size, evaluate

Level = Literal["exact", "approximate"]
EXACT: Level = "exact"
APPROXIMATE: Level = "approximate"
Values = Mapping[str, Activation]


@dataclass(frozen=True)
class Problem:
    """The values, bits by module, the codecs that the user's policy fixed, and whose code carries a decision.

    ``hints`` are the numbers that symbolic sizes have while the plan is made.
    """

    values: Values
    options: Options
    bits: Mapping[str, int | None]
    fixed: Mapping[str, Codec]
    carriers: Mapping[str, Affine]
    hints: Mapping[str, int]

    @classmethod
    def of(cls, activations: tuple[Activation, ...], options: Options, hints: Mapping[str, int]) -> Problem:
        """The problem that the options pose.

        Raises:
            OptionError: the user's policy returned something that is not a codec.
        """
        coded = options.checkpoint_bits is not None and any(a.entering for a in activations)
        values = {a.name: a if coded else _recomputed_exactly(a) for a in activations}
        bits = {module: options.bits_of(module) for module in {a.module for a in activations}}
        for name, value in values.items():
            if value.approximable and bits[value.module] is None and not coded:
                values[name] = replace(value, approximable=False, reason=f"{value.reason}; exact by option bits")
        fixed = _ask_policy(values, options)
        for name, codec in fixed.items():
            if isinstance(codec, Exact):
                values[name] = replace(values[name], approximable=False, reason="kept exact by the policy")
        carriers: dict[str, Affine] = {}
        for name, value in values.items():
            affine = value.embedded
            if affine is None:
                continue
            root = values[affine.root]
            able = (
                root.approximable and not root.kept and bits[root.module] is not None
                and isinstance(fixed.get(root.name, Threshold()), Carrier)
            )  # fmt: skip
            first = carriers.get(root.name, affine)
            if able and first.agrees_with(affine):
                carriers[root.name] = first if first.ties_above is not None else affine
            else:  # a code carries one threshold; any other decision is stored by itself
                values[name] = replace(value, embedded=None)
        return cls(values, options, bits, fixed, carriers, hints)

    @cached_property
    def rank(self) -> dict[str, int]:
        """The places of the values in the graph."""
        return {name: place for place, name in enumerate(self.values)}

    def without_carriers(self, roots: Collection[str]) -> Problem:
        """The problem in which the codes of these values carry no decisions."""
        values = {
            name: replace(value, embedded=None) if value.embedded and value.embedded.root in roots else value
            for name, value in self.values.items()
        }
        return replace(self, values=values, carriers={k: v for k, v in self.carriers.items() if k not in roots})

    def with_exact(self, names: Collection[str], why: str) -> Problem:
        """The problem in which these values are exact, and so are the decisions that their codes would carry."""
        values = {
            name: replace(value, approximable=False, reason=f"{value.reason}; {why}")
            if value.approximable and name in names else value
            for name, value in self.values.items()
        }  # fmt: skip
        return replace(self, values=values).without_carriers(self.carriers.keys() & names)

    def carried(self, value: Activation, level: Level) -> bool:
        """Whether another value's code gives this decision, or lets this rectifier be run again."""
        return (
            value.embedded is not None
            and value.embedded.root != value.name
            and (level == APPROXIMATE or not value.is_float)
        )

    def recomputable(self, value: Activation, level: Level) -> bool:
        """Whether backward can run the value's operator again at this level."""
        if self.carried(value, level):
            return True
        # the code that carries a decision has to be the value's own, so an approximate carrier is always stored
        return value.rerunnable if level == EXACT else value.recomputable and value.name not in self.carriers

    def sources(self, value: Activation, level: Level, *, coded: bool = True) -> Iterator[tuple[str, Level, Use]]:
        """(value, the level at which it is read, how) of everything that recomputing the value reads.

        Args:
            coded: whether what another value's code may carry is in it.
        """
        carried = coded and self.carried(value, level)
        if carried:
            assert value.embedded is not None
            yield value.embedded.root, APPROXIMATE, Use.LINEAR
            if not value.is_float:
                return
        if value.clamp is not None and level == APPROXIMATE:
            yield value.clamp.operand, APPROXIMATE, Use.LINEAR
            yield value.clamp.predicate, EXACT, Use.DECISION
            return
        for operand in value.operands:
            decided = carried and operand.use == Use.DECISION
            exact = level == EXACT or (operand.exact and not decided)
            yield operand.name, EXACT if exact else APPROXIMATE, Use.LINEAR if decided else operand.use

    def cost(self, value: Activation, level: Level) -> float | None:
        """Bytes of storing the value at a level; None if it cannot be stored."""
        if not value.storable and not value.reshaped:
            return None
        # a value in another shape is stored instead of it, but where only this one can carry a decision
        more = 1 if value.reshaped else 0
        if value.kind is Class.DISCRETE:
            return max(self.bytes(lossless_codec(value), value), 1) + more
        if level == APPROXIMATE and value.approximable and (value.name in self.carriers or not value.reshaped):
            codec = self.codec(value, value.kind)
            # counted as a plain one: of a saturating function the result is stored, not an operand of the same size
            return self.bytes(replace(codec, hollow=False) if isinstance(codec, Group) else codec, value)
        return max(value.nbytes, 8) + more

    def bytes(self, codec: Codec, value: Activation) -> int:
        """Bytes of the value in the codec, at the hints."""
        return evaluate(stored_bytes(codec, value, self.carriers.get(value.name)), self.hints)

    def codec(self, value: Activation, kind: Class) -> Codec:
        """The codec of a value of which an approximate copy will do."""
        if value.kept:
            return Copy() if value.partial else Exact()
        given = self.fixed.get(value.name)
        if given is not None and not self.lacks(given, value):
            return given
        entering = value.entering and self.options.checkpoint_bits is not None
        bits = self.options.checkpoint_bits if entering else self.bits[value.module]
        if given is not None and given.bits is not None and given.bits <= 8:  # a cast to 16 bits is no code
            bits = given.bits
        elif bits is None:  # it is computed again from codes of what enters a checkpointed region, or stored exactly
            return Copy() if value.partial else Exact()
        else:
            bits = max(bits, LEAST_BITS.get(kind, 8))
        assert bits is not None
        codec = choose(self._traits(value, kind, bits))
        if isinstance(codec, Group) and self.bytes(codec, value) >= value.nbytes:
            return Exact()  # groups do not cross symbolic sizes
        return codec

    def lacks(self, codec: Codec, value: Activation) -> str:
        """What a codec asks of a value that has it not, in words; "" if it fits."""
        need = self._traits(value, value.kind, DEFAULT).lacks(codec)
        return "" if need is None else need.value

    def _traits(self, value: Activation, kind: Class, bits: int) -> Traits:
        return Traits(
            kind, bits, self.options.rounding, self._offers(value),
            nonnegative=value.nonnegative, weights=value.weights, saturates=value.saturates,
        )  # fmt: skip

    def _offers(self, value: Activation) -> frozenset[Need]:
        """What the value has that a codec may need; a rectifier's output: whose decision is that it is not zero."""
        affine = self.carriers.get(value.name)
        rectified = affine is not None and not affine.steps and affine.threshold == 0 and value.nonnegative
        has = {
            Need.COMPLEX if is_complex(value) else Need.REAL: True, Need.STATISTICS: value.moments is not None,
            Need.DECISION: affine is not None, Need.RECTIFIER: rectified,
        }  # fmt: skip
        return frozenset(need for need, there in has.items() if there)


def is_complex(value: Activation) -> bool:
    """Whether the value's elements are complex numbers."""
    return value.dtype is not None and value.dtype.is_complex


def _recomputed_exactly(value: Activation) -> Activation:
    """The value where the user's checkpointed regions are computed again exactly: nothing in them is stored."""
    if value.inside:
        return replace(value, storable=False, reshaped=False)
    if value.entering and value.approximable:
        return replace(value, approximable=False, reason="a checkpointed region is computed again from it")
    return value


def stored_bytes(codec: Codec, value: Activation, affine: Affine | None) -> Size:
    """Bytes of a value's code; of one that carries a decision, what it keeps for each channel of the coefficients.

    Args:
        affine: the decision that its code carries.
    """
    if not isinstance(codec, Carrier) or affine is None:
        return codec.nbytes(value.sizes, value.dtype)
    channels = None if affine.channel is None else math.prod(affine.channel)
    return codec.nbytes_with(value.sizes, value.dtype, channels, own_statistics=affine.mean is None)


def lossless_codec(value: Activation) -> Codec:
    """The smallest storage of a value that loses nothing."""
    return lossless(None if value.kept else value.dtype, value.span, copied=value.partial or value.reshaped)


def _ask_policy(values: Values, options: Options) -> dict[str, Codec]:
    """The user's choices, for every value that may be approximate."""
    if options.policy is None:
        return {}
    fixed = {}
    for value in values.values():
        codec = options.policy(value) if value.approximable and not value.kept else None
        if codec is None:
            continue
        if not isinstance(codec, Codec):
            raise OptionError(f"policy returned {codec!r} for {value.name}: expected a codec or None")
        if isinstance(codec, (Mask, Integer)):
            raise OptionError(f"policy returned {codec.text!r} for {value.name}: it holds no {value.dtype}")
        fixed[value.name] = codec
    return fixed
