"""Amounts of memory as people write them: "8GiB", "512 MiB", "2GB", or a number of bytes; and bytes as text."""

from __future__ import annotations

import re
from fractions import Fraction

from fxapprox.errors import OptionError, shown

UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*([0-9]{1,30})(\.[0-9]{1,30})?\s*([A-Za-z]*)\s*")
LARGEST = 2**63  # bytes from there on are no memory


def parse_bytes(amount: str | int, name: str = "memory", *, more: str = "") -> int:
    """The number of bytes that an amount is, rounded down.

    Args:
        amount: a number with a unit, in any case of letters: B, KiB, MiB, GiB, TiB (powers of 1024), KB, MB, GB, TB
            (powers of 1000); an int is a number of bytes.
        name: of the option, for messages.
        more: what else the option takes, for messages.

    Raises:
        OptionError: it is not an amount, less than one byte, or a fraction without a unit.
    """
    found = _AMOUNT.fullmatch(amount) if isinstance(amount, str) else None
    nbytes = amount if type(amount) is int else 0
    if found is not None and (unit := found[3].lower()) in UNITS:
        if found[2] and UNITS[unit] == 1:
            given = f"{name}={shown(amount)}: expected a whole number of bytes, or a unit"
            raise OptionError(f'{given}, as in "{found[1]}{found[2]}GiB"{more}')
        nbytes = int(Fraction(found[1] + (found[2] or "")) * UNITS[unit])
    if not 1 <= nbytes < LARGEST:
        raise OptionError(
            f'{name}={shown(amount)}: expected an amount of memory, such as "8GiB", "512MiB", or bytes{more}'
        )
    return nbytes


def size_text(nbytes: float) -> str:
    """Bytes as B, KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"
