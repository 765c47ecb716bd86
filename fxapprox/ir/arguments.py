"""The arguments of a node's operator, as its schema has them: by position, by keyword, or left at their defaults.

Overloads of one operator take the same argument by position or by keyword alone (``sort`` and ``sort.stable``), and a
graph leaves out what has its default. So whoever reads an argument for its meaning reads it here, by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from torch import fx

from fxapprox import torch_adapter as adapter


def argument(node: fx.Node, key: str | int, otherwise: Any = None) -> Any:
    """One argument of a node, by the schema's name or the place that the schema has it in.

    A target without a schema has arguments by position alone.

    Args:
        otherwise: for an argument that the operator does not have.
    """
    places, names, defaults = _schema(node.target)
    at = places.get(key) if isinstance(key, str) else key
    if at is None:
        return node.kwargs.get(key, otherwise)  # type: ignore[arg-type]
    if at < len(node.args):
        return node.args[at]
    return node.kwargs.get(names[at], defaults[at]) if at < len(names) else otherwise


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """All arguments of a node, in the schema's order."""
    _, names, _ = _schema(node.target)
    return tuple(argument(node, at) for at in range(max(len(names), len(node.args))))


def place_of(node: fx.Node, name: str) -> int | None:
    """The place that the schema has an argument in; None if there is none of this name, or no schema."""
    return _schema(node.target)[0].get(name)


def operands(node: fx.Node) -> Iterator[tuple[int, fx.Node]]:
    """(place in the schema, operand) of every operand; those in a list share the list's place."""
    places, _, _ = _schema(node.target)
    given = [*enumerate(node.args), *((places.get(name, -1), value) for name, value in node.kwargs.items())]
    for place, value in given:
        for leaf in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(leaf, fx.Node):
                yield place, leaf


@cache
def _schema(target: Any) -> tuple[Mapping[str, int], tuple[str, ...], tuple[Any, ...]]:
    """({name: place}, names, defaults) of a target's arguments; nothing for a target without a schema."""
    found = target._schema.arguments if adapter.is_operator(target) else ()
    names = tuple(each.name for each in found)
    return {name: at for at, name in enumerate(names)}, names, tuple(each.default_value for each in found)
