"""Plain data, as JSON has it, read against the types of our records: what does not fit is named, with its place."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from fxapprox.errors import FxApproxError, shown

Reader = Callable[[Any, str], Any]


class Misfit(FxApproxError):
    """A value in a document that is not what stands there; the message begins with its place: "graphs[0][2].op"."""


def read(kind: Any, value: Any, place: str = "", readers: Mapping[Any, Reader] | None = None) -> Any:
    """The value as one of this type.

    Args:
        kind: a dataclass; str, bool, int or float; tuple[X, ...], Mapping[str, X], or a union of such.
        value: what a JSON document holds.
        place: of the value in the document.
        readers: how types that are none of these are read: {type: function of value and place}.

    Raises:
        Misfit: a type, a name of a field, or a value that its record refuses.
    """
    readers = readers or {}
    if kind in readers:
        return readers[kind](value, place)
    if is_dataclass(kind):
        return _record(kind, value, place, readers)
    if get_origin(kind) in (Union, types.UnionType):
        return _either(get_args(kind), value, place, readers)
    if get_origin(kind) is tuple:
        require(type(value) is list, value, place, "a list")
        return tuple(read(get_args(kind)[0], item, f"{place}[{i}]", readers) for i, item in enumerate(value))
    if get_origin(kind) is not None:
        require(type(value) is dict, value, place, "an object")
        inner = get_args(kind)[1]
        return {key: read(inner, item, f"{place}[{shown(key)}]", readers) for key, item in value.items()}
    if kind is float:
        # a bool is no number here, and a whole number may be too large to be the same as a float
        ok = type(value) in (int, float) and -1e300 < value < 1e300 and float(value) == value
        require(ok, value, place, "a finite number")
        return float(value)
    require(type(value) is kind, value, place, NAMES[kind])
    return value


NAMES = {str: "a string", bool: "true or false", int: "a whole number", types.NoneType: "null"}


def require(ok: bool, value: Any, place: str, expected: str) -> None:
    """Raises Misfit if not."""
    if not ok:
        raise Misfit(f"{place or 'the document'} is {_named(value)}: expected {expected}")


def names(found: Any, wanted: tuple[str, ...], place: str) -> None:
    """Checks that an object has these fields and no others.

    Raises:
        Misfit: it is no object, or a field is missing or unknown.
    """
    require(type(found) is dict, found, place, "an object")
    missing, unknown = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
    if missing or unknown:
        wrong = f"no field {missing[0]!r}" if missing else f"a field {shown(unknown[0])}"
        raise Misfit(f"{place or 'the document'} has {wrong}: expected {', '.join(wanted)}")


def _record(kind: Any, value: Any, place: str, readers: Mapping[Any, Reader]) -> Any:
    hints = get_type_hints(kind)
    wanted = tuple(field.name for field in fields(kind))
    names(value, wanted, place)
    inside = {n: read(hints[n], value[n], f"{place}.{n}" if place else n, readers) for n in wanted}
    try:
        return kind(**inside)
    except Misfit:
        raise
    except FxApproxError as error:
        raise Misfit(f"{place}: {error}") from None


def _either(kinds: tuple[Any, ...], value: Any, place: str, readers: Mapping[Any, Reader]) -> Any:
    for kind in kinds:
        try:
            return read(kind, value, place, readers)
        except Misfit:
            continue
    raise Misfit(f"{place} is {_named(value)}: expected {' or '.join(NAMES[kind] for kind in kinds)}")


def _named(value: Any) -> str:
    """A value by the names of JSON."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or type(value) is bool:
        return words[value]
    return "a list" if type(value) is list else "an object" if type(value) is dict else shown(value)
