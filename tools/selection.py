"""Choosing models by name on a command line."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def select(names: Iterable[str], wanted: str) -> list[str]:
    """The names that contain one of the comma-separated parts of ``wanted``, in any case of letters; all if it is "".

    Raises:
        typer.BadParameter: no name does.
    """
    names = list(names)
    parts = [part.strip().lower() for part in wanted.split(",") if part.strip()]
    chosen = [name for name in names if not parts or any(part in name.lower() for part in parts)]
    if not chosen:
        raise typer.BadParameter(f"no model matches {wanted!r}; there are: {'; '.join(names)}")
    return chosen
