"""Sizes that are not known yet: byte counts as expressions in the dynamic dimensions, and their values for a batch.

One compiled graph serves many sizes, and what it stores for backward is a formula in them. A size is an int where it
is static, and a sympy expression in the shape environment's symbols where it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

from fxapprox.errors import OptionError

Size = int | sympy.Expr


@dataclass(frozen=True, slots=True)
class SizeSymbol:
    """One dynamic dimension.

    Attributes:
        name: as it stands in expressions, e.g. "s77".
        hint: the size that bytes are given for: the traced one, or what ``Report.at`` was asked for.
        source: where it comes from, e.g. "x.size(0)"; "" if unknown.
        low, high: the sizes that the graph serves, both included; None: no limit.
    """

    name: str
    hint: int
    source: str
    low: int
    high: int | None

    @property
    def label(self) -> str:
        """Name and source, for messages."""
        return f"{self.name} = {self.source}" if self.source else self.name

    @property
    def range_text(self) -> str:
        """The sizes that the graph serves, in words."""
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"

    def within(self, other: SizeSymbol | None) -> SizeSymbol:
        """The same dimension, with the sizes that another graph serves as well."""
        if other is None:
            return self
        highs = [high for high in (self.high, other.high) if high is not None]
        return replace(self, low=max(self.low, other.low), high=min(highs, default=None))


def evaluate(size: Size | sympy.Basic, values: Mapping[str, int]) -> int:
    """The number that an expression is for these sizes, given by the symbols' names."""
    return size if isinstance(size, int) else int(_at(size, values))  # type: ignore[arg-type]


def hints_of(symbols: Iterable[SizeSymbol]) -> dict[str, int]:
    """The sizes that bytes are given for, by name."""
    return {symbol.name: symbol.hint for symbol in symbols}


def resolve(
    given: int | Mapping[str, int], symbols: Sequence[SizeSymbol], conditions: Iterable[sympy.Basic] = ()
) -> dict[str, int]:
    """The value of every symbol, checked.

    Args:
        given: a size for each symbol's name, or a number where there is one symbol.
        symbols: those that there are.
        conditions: what else the sizes of one graph have to fulfil.

    Raises:
        OptionError: a symbol is unknown or missing, or the graph does not serve the size.
    """
    if not symbols:
        raise OptionError("the plan has no symbolic sizes: make it with dynamic=True")
    labels = ", ".join(symbol.label for symbol in symbols)
    if not isinstance(given, Mapping):
        if len(symbols) > 1:
            raise OptionError(f"size={given!r}: there are several sizes, give each by its name: {labels}")
        given = {symbols[0].name: given}
    known = {symbol.name: symbol for symbol in symbols}
    for name in given:
        if name not in known:
            raise OptionError(f"unknown size {name!r}; there are: {labels}")
    for name, symbol in known.items():
        if name not in given:
            raise OptionError(f"the size {name!r} is missing ({symbol.label})")
        _check(given[name], symbol)
    values = dict(given)
    for condition in conditions:
        if _at(condition, values) == sympy.false:
            sizes = ", ".join(f"{name}={value}" for name, value in values.items())
            raise OptionError(f"{sizes}: the graph serves sizes with {condition} only; {_ADVICE}")
    return values


_ADVICE = "make the plan with inputs of these sizes"


def _check(value: object, symbol: SizeSymbol) -> None:
    if type(value) is not int or value < 1:
        raise OptionError(f"{symbol.name}={value!r}: expected a size, an int of at least 1")
    if value < symbol.low or (symbol.high is not None and value > symbol.high):
        raise OptionError(f"{symbol.name}={value}: the graph serves {symbol.range_text} ({symbol.label}); {_ADVICE}")


def _at(expression: sympy.Basic, values: Mapping[str, int]) -> sympy.Basic:
    return expression.xreplace({s: sympy.Integer(values[s.name]) for s in expression.free_symbols})  # type: ignore[attr-defined]


def renamed(expression: Any, names: Mapping[str, str]) -> Any:
    """The expression with some symbols under other names."""
    changes = {s: sympy.Symbol(names[s.name], **s.assumptions0) for s in expression.free_symbols if s.name in names}
    return expression.xreplace(changes) if changes else expression
