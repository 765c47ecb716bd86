"""What a user can ask for: each option described once, in its field of ``Options`` (record.py)."""

from fxapprox.options.environment import ENVIRONMENT, from_environment
from fxapprox.options.patterns import covers
from fxapprox.options.record import (
    DEFAULTS,
    NAMES,
    OPTIONS,
    Count,
    OptionKeywords,
    Options,
    documented,
    require_names,
    table,
    unknown_option,
)

__all__ = [
    "DEFAULTS",
    "ENVIRONMENT",
    "NAMES",
    "OPTIONS",
    "Count",
    "OptionKeywords",
    "Options",
    "covers",
    "documented",
    "from_environment",
    "require_names",
    "table",
    "unknown_option",
]
