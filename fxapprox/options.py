"""The options: one frozen record, the same names everywhere, validated before anything is traced."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from fxapprox.errors import OptionError

if TYPE_CHECKING:
    from fxapprox.activation import Activation
    from fxapprox.codecs import Codec

Rounding = Literal["nearest", "stochastic"]
Lowering = Literal["inductor", "eager"]
BITS = (8, 4, 2)


@dataclass(frozen=True, slots=True)
class Options:
    """How activations are stored for backward.

    Attributes:
        bits: bits per stored element, 8, 4 or 2; None is exact mode: lossless savings only.
            Values that need more get more (see ``Class`` in activation.py).
        rounding: "nearest" (least error per step), or "stochastic" (unbiased: the group codec's error
            averages out over steps; ActNN, Chen et al. 2021, section 3).
        min_bytes: leave tensors smaller than this many bytes as they are.
        policy: ``Activation -> Codec | None``, the last word on each stored value; None keeps our choice.
        lowering: "inductor", or "eager" to run the rewritten graphs as they are.
        strict: raise where a graph cannot be rewritten, instead of warning and storing it exactly.

    Raises:
        OptionError: a value is not one of those above.
    """

    bits: int | None = 8
    rounding: Rounding = "nearest"
    min_bytes: int = 4096
    policy: Callable[[Activation], Codec | None] | None = None
    lowering: Lowering = "inductor"
    strict: bool = False

    def __post_init__(self) -> None:
        _require(self.bits is None or (type(self.bits) is int and self.bits in BITS), "bits", self.bits,
                 "8, 4, 2, or None for exact mode")  # fmt: skip
        _require(self.rounding in get_args(Rounding), "rounding", self.rounding, '"nearest" or "stochastic"')
        _require(type(self.min_bytes) is int and self.min_bytes >= 0, "min_bytes", self.min_bytes,
                 "a number of bytes, 0 or more")  # fmt: skip
        _require(self.policy is None or callable(self.policy), "policy", self.policy,
                 "a function Activation -> Codec | None")  # fmt: skip
        _require(self.lowering in get_args(Lowering), "lowering", self.lowering, '"inductor" or "eager"')
        _require(type(self.strict) is bool, "strict", self.strict, "True or False")

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Options from keyword arguments.

        Raises:
            OptionError: a name is unknown (the message suggests the nearest), or a value is invalid.
        """
        unknown = [name for name in given if name not in NAMES]
        if unknown:
            raise OptionError(unknown_option(unknown[0], NAMES))
        return cls(**given)


NAMES = tuple(field.name for field in fields(Options))


def unknown_option(name: str, known: tuple[str, ...]) -> str:
    """The message for an option nobody knows, with the nearest name that exists."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(NAMES)}"
    return f"unknown option {name!r}; {hint}"


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise OptionError(f"{name}={value!r}: expected {expected}")
