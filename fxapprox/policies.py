"""Policies to write in a line: by class, by module, the first of several, and at least so many bits.

A policy is any function from an :class:`Activation` to a codec, or None where fxapprox is to choose. Those made here
can be put into each other, are equal where they choose alike, and have a ``uuid``: compiled graphs are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fxapprox.bits import CODES
from fxapprox.codecs import Codec
from fxapprox.codecs.choose import CODED
from fxapprox.errors import OptionError, shown
from fxapprox.ir.records import Activation
from fxapprox.options import covers

Policy = Callable[[Activation], Codec | None]


@dataclass(frozen=True)
class _ByClass:
    codecs: tuple[tuple[str, Codec], ...]

    def __call__(self, value: Activation) -> Codec | None:
        return dict(self.codecs).get(value.kind.value)

    @property
    def uuid(self) -> str:
        return repr(self)


@dataclass(frozen=True)
class _ByModule:
    codecs: tuple[tuple[str, Codec], ...]

    def __call__(self, value: Activation) -> Codec | None:
        return next((codec for pattern, codec in self.codecs if covers(pattern, value.module)), None)

    @property
    def uuid(self) -> str:
        return repr(self)


@dataclass(frozen=True)
class _First:
    policies: tuple[Policy, ...]

    def __call__(self, value: Activation) -> Codec | None:
        return next((codec for policy in self.policies if (codec := policy(value)) is not None), None)

    @property
    def uuid(self) -> str | None:
        return _uuid_of("first", *self.policies)


@dataclass(frozen=True)
class _AtLeast:
    bits: int
    policy: Policy

    def __call__(self, value: Activation) -> Codec | None:
        codec: Any = self.policy(value)
        if codec is None or codec.lossless or codec.bits is None or codec.bits >= self.bits:
            return codec
        try:
            return replace(codec, bits=self.bits)
        except TypeError:
            raise OptionError(f"at_least: {codec!r} is no dataclass with a field `bits` that could be more") from None

    @property
    def uuid(self) -> str | None:
        return _uuid_of(f"at_least({self.bits})", self.policy)


def _uuid_of(name: str, *policies: Policy) -> str | None:
    """What a policy made of others is known by; None where one of the user's own has no ``uuid``."""
    parts = [getattr(policy, "uuid", None) for policy in policies]
    return None if None in parts else f"{name}{parts}"


def by_class(**codecs: Codec) -> Policy:
    """A codec for each class of values: linear, smooth, attention, softmax (docs/design.md says what they are).

    Example: ``by_class(smooth=Group(8), linear=Group(2))``

    Raises:
        OptionError: there is no such class of values that are coded, or something is no codec.
    """
    known = [kind.value for kind in CODED]
    for name in codecs:
        if name not in known:
            raise OptionError(f"by_class({name}=...): the classes of values that are coded are {', '.join(known)}")
    return _ByClass(_checked("by_class", codecs))


def by_module(codecs: Mapping[str, Codec]) -> Policy:
    """A codec for what the modules make whose paths match a pattern; the first pattern that matches counts.

    Patterns are those of ``bits={pattern: number}``: "encoder" and "encoder.*" mean all that is in it.

    Example: ``by_module({"head": Exact(), "blocks.*.mlp": Group(8)})``

    Raises:
        OptionError: something is no codec, or a pattern no text.
    """
    return _ByModule(_checked("by_module", codecs))


def first(*policies: Policy) -> Policy:
    """What the first policy says that says something.

    Raises:
        OptionError: something cannot be called.
    """
    for policy in policies:
        _require_policy("first", policy)
    return _First(policies)


def at_least(bits: int, policy: Policy) -> Policy:
    """What a policy says, but nothing with fewer bits than these; what it leaves to fxapprox stays so.

    Raises:
        OptionError: the bits are none of 8, 4, 3 and 2, or the policy cannot be called.
    """
    if type(bits) is not int or bits not in CODES:
        raise OptionError(f"at_least({shown(bits)}, ...): expected 8, 4, 3 or 2 bits")
    _require_policy("at_least", policy)
    return _AtLeast(bits, policy)


def _checked(name: str, codecs: Mapping[str, Codec]) -> tuple[tuple[str, Codec], ...]:
    for key, codec in codecs.items():
        if not isinstance(key, str):
            raise OptionError(f"{name}: expected a pattern of module paths, not {shown(key)}")
        if not isinstance(codec, Codec):
            raise OptionError(f"{name}: expected a codec for {key!r}, not {shown(codec)}")
    return tuple(codecs.items())


def _require_policy(name: str, policy: object) -> None:
    if not callable(policy):
        raise OptionError(f"{name}: expected a policy, a function from an Activation to a codec, not {shown(policy)}")
