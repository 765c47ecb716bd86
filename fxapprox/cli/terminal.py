"""What commands share: their target, where they print, and the user's own code kept apart from that."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Annotated

import typer
from rich.console import Console

Target = Annotated[str, typer.Argument(help="module:factory or file.py:factory", metavar="TARGET")]


def console() -> Console:
    """Standard output, in the terminal's width; where there is no terminal, that of COLUMNS or a default."""
    from fxapprox.show.summary import WIDTH

    return Console(width=shutil.get_terminal_size((WIDTH, 24)).columns)


@contextmanager
def users_code(doing: str = "") -> Iterator[None]:
    """What the user's code prints goes to stderr: stdout is the report's. On a terminal, says what is being done."""
    showing = Console(stderr=True).status(doing) if doing else nullcontext()
    with showing, redirect_stdout(sys.stderr):
        yield
