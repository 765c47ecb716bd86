"""What somebody types in a terminal, as the value that Python takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fxapprox.bits import BOUNDARIES, OFFERED
from fxapprox.errors import OptionError, shown

EXACT = "exact"  # typed for None
NONE = "none"  # typed for None
AUTO = "auto"


def parse_bits(text: str) -> int | str | dict[str, int | None] | None:
    """The value of --bits: "8", "exact", "auto", or "PATTERN=8,PATTERN=exact".

    Raises:
        OptionError: a number is missing or unknown.
    """
    numbers = _numbers(OFFERED)
    if text == AUTO or text in numbers:
        return numbers.get(text, text)
    pairs = [tuple(map(str.strip, pair.rpartition("="))) for pair in text.split(",")]
    if not all(pattern and number in numbers for pattern, _, number in pairs):
        raise OptionError(
            f"--bits {_typed(text)}: expected {', '.join(numbers)} or {AUTO}, or numbers by module: layers.*.attn=8,*=4"
        )
    found = {pattern: numbers[number] for pattern, _, number in pairs}
    if len(found) < len(pairs):
        raise OptionError(f"--bits {_typed(text)}: expected each pattern once")
    return found


def parse_several_bits(text: str) -> tuple[int | str | None, ...]:
    """The value of audit's --bits: "8,4,exact,auto".

    Raises:
        OptionError: something is not a number of bits.
    """
    numbers: dict[str, int | str | None] = {**_numbers(OFFERED), AUTO: AUTO}
    given = [number.strip() for number in text.split(",")]
    if not all(number in numbers for number in given):
        *others, last = numbers
        raise OptionError(f"--bits {_typed(text)}: expected some of {', '.join(others)} and {last}, such as 8,4,2")
    return tuple(numbers[number] for number in given)


def parse_systems(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """The value of --systems: exact names, or parts of names, in the order of ``names``; all for "".

    Raises:
        OptionError: a part is in no name.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not any(part in name for name in names):
            raise OptionError(f"--systems {_typed(text)}: no {part!r}; there are: {', '.join(names)}")
    exact = [part for part in parts if part in names]
    loose = [part for part in parts if part not in names]
    return tuple(n for n in names if not parts or n in exact or any(part in n for part in loose))


def parse_checkpoint(text: str) -> float | str | None:
    """The value of --checkpoint: "sqrt", a fraction, a number, or "" for none; Options checks it."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text or None


def parse_slices(text: str) -> int | str | None:
    """The value of --slices: "auto", "none", or a number; Options checks it."""
    if text.isdecimal():
        return int(text)
    return None if text == NONE else text


def parse_checkpoint_bits(text: str) -> int | None:
    """The value of --checkpoint-bits: "8", "4" or "exact".

    Raises:
        OptionError: it is something else.
    """
    numbers = _numbers(BOUNDARIES)
    if text not in numbers:
        *others, last = numbers
        raise OptionError(f"--checkpoint-bits {_typed(text)}: expected {', '.join(others)} or {last}")
    return numbers[text]


def parse_budget(text: str) -> float | str | None:
    """The value of --memory-budget: a fraction, an amount of memory, or "" for none; Options checks it."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def parse_size(text: str) -> int | dict[str, int]:
    """The value of --size: "64", or "NAME=64,NAME=128".

    Raises:
        OptionError: something is not a number, or has no name.
    """
    pairs = [tuple(map(str.strip, pair.rpartition("="))) for pair in text.split(",")]
    sizes = {name: int(number) for name, _, number in pairs if re.fullmatch("[0-9]{1,18}", number)}
    alone = len(pairs) == 1 and "=" not in text
    if len(sizes) < len(pairs) or ("" in sizes) is not alone:
        raise OptionError(f"--size {_typed(text)}: expected a number, or numbers by name, each once: s77=64,s12=128")
    return sizes[""] if alone else sizes


def _numbers(bits: Sequence[int]) -> dict[str, int | None]:
    return {**{str(number): number for number in bits}, EXACT: None}


def _typed(text: str) -> str:
    """What somebody typed, in one line, as messages show it."""
    return shown(text)[1:-1]
