"""Which values an option may have, and what they are made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral, Rational, Real
from typing import TYPE_CHECKING, Any

from fxapprox.amounts import parse_bytes
from fxapprox.bits import OFFERED
from fxapprox.errors import OptionError, shown

if TYPE_CHECKING:
    from fxapprox.files.plan_file import SavedPlan

MOST_SEGMENTS = 10**6
MOST_SLICES = 1024


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Checks that something holds of an option.

    Raises:
        OptionError: it does not.
    """
    if not ok:
        raise OptionError(f"{name}={shown(value)}: expected {expected}")


def plain(value: Any) -> Any:
    """NumPy's numbers and strings, and others that are derived from Python's, as Python's own."""
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Rational):
        return float(value)
    return str.__str__(value) if isinstance(value, str) else value


def is_one_of(value: object, *allowed: object) -> bool:
    """Whether it is one of these, of the same type: an array would compare elementwise, and True equals 1."""
    return any(type(value) is type(one) and value == one for one in allowed)


def load_bits(bits: Any) -> Any:
    """A number or a word as Python's own, patterns as a mapping of our own: the caller's may change."""
    if not isinstance(bits, Mapping):
        return plain(bits)
    require(len(bits) > 0, "bits", bits, 'at least one pattern, as in {"*": 4}')
    found = {plain(pattern): plain(value) for pattern, value in bits.items()}
    for pattern, value in found.items():
        require(type(pattern) is str and bool(pattern), "bits", bits, "patterns of module paths as keys")
        known = is_one_of(value, None, *OFFERED)
        require(known, f"bits[{shown(pattern)}]", value, "8, 4, 2, or None to keep values exact")
    return found


def is_count(value: object) -> bool:
    """Whether it says how many segments there are to be."""
    if type(value) is float:
        return 0 < value < 1
    return is_one_of(value, None, "sqrt") or (type(value) is int and 1 <= value <= MOST_SEGMENTS)


def is_slices(value: object) -> bool:
    """Whether it says in how many slices wide parts of a graph run."""
    return is_one_of(value, None, "auto") or (type(value) is int and 2 <= value <= MOST_SLICES)


def is_budget(value: Any) -> bool:
    """Whether it is a share of a peak; of a text that is no amount of memory an error says more."""
    if isinstance(value, str):
        return parse_bytes(value, "memory_budget", more=", or a fraction as a number, such as 0.3") > 0
    return value is None or (type(value) in (int, float) and 0 < value <= 1)


def load_sensitivities(value: Any) -> Any:
    """The sensitivities in a file, where a path is given."""
    from fxapprox.files.sensitivity import Sensitivities

    return Sensitivities.load(value) if isinstance(value, (str, os.PathLike)) else value


def are_sensitivities(value: object) -> bool:
    """Whether it is what ``calibrate`` returns, or None."""
    from fxapprox.files.sensitivity import Sensitivities

    return value is None or isinstance(value, Sensitivities)


def load_plan(value: Any) -> Any:
    """The plan in a file, where a path is given."""
    from fxapprox.files.plan_file import SavedPlan

    return SavedPlan.load(value) if isinstance(value, (str, os.PathLike)) else value


def is_saved_plan(value: object) -> bool:
    """Whether it is a plan, or None."""
    from fxapprox.files.plan_file import SavedPlan

    return value is None or isinstance(value, SavedPlan)


def key_of_plan(value: SavedPlan | None) -> str | None:
    """What stands for a plan in cache keys; None where it has a codec of the user's own."""
    return repr(value) if value is None or value.is_ours else None


def key_of_policy(value: object) -> str | None:
    """What stands for a policy in cache keys; None where it has no ``uuid``."""
    uuid = "" if value is None else getattr(value, "uuid", None)
    return None if uuid is None else repr(uuid)
