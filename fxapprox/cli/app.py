"""The command line: ``fxapprox demo``, ``dump``, ``audit``, ``fit`` and ``bench``, a file each."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from fxapprox.cli.audit import audit
from fxapprox.cli.bench import bench
from fxapprox.cli.demo import demo
from fxapprox.cli.dump import dump
from fxapprox.cli.fit import fit
from fxapprox.errors import FxApproxError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Train in a fraction of the activation memory, as a backend of torch.compile.",
)
for command in (demo, dump, audit, bench, fit):
    app.command()(command)


@contextmanager
def _printing() -> Iterator[None]:
    """Flushes standard output at the end.

    Raises:
        FxApproxError: it takes no more.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        raise FxApproxError(f"standard output cannot be written to: {error}") from error


def main() -> None:
    """Entry point; an error of ours is one line, without a traceback."""
    try:
        with _printing():
            app()
    except FxApproxError as error:
        message = str(error).partition("\n\nSet TORCHDYNAMO_VERBOSE")[0]  # Dynamo's advice, not ours
        Console(stderr=True).print(
            f"fxapprox: {message}", style="red", markup=False, emoji=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)
