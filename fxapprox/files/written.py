"""Files that are written as a whole or not at all: a crash, or a full disk, leaves what was there before."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from fxapprox.errors import FxApproxError, shown


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file; errors as for :func:`write_file`."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a file beside this one, of the same suffix, and moves it here when it is complete.

    What is no regular file, such as a pipe or /dev/stdout, is written to as it is.

    Raises:
        FxApproxError: the path is none, or it cannot be written to.
    """
    try:
        target = Path(os.path.realpath(Path(path)))  # a link stays one
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        if target.exists() and not target.is_file():
            write(target)
            return
        temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
        try:
            write(temporary)
            _settle(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError, TypeError) as error:  # ValueError: a name that no file can have, or an unknown format
        name = path if isinstance(path, os.PathLike) else shown(path)
        raise FxApproxError(
            f"{name} cannot be written: {error}; give a file in a folder that exists and has space left"
        ) from error


def make_folder(path: Path) -> None:
    """Makes a folder, and those around it, where it is missing.

    Raises:
        FxApproxError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FxApproxError(f"{shown(str(path))} cannot be made a folder: {error}; give another path") from error


def _settle(temporary: Path, target: Path) -> None:
    """Moves a complete file to its place, on the disk too, with the permissions of the one that it replaces."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if target.exists():
        shutil.copymode(target, temporary)
    os.replace(temporary, target)
