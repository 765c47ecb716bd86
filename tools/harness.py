"""What the tools share: items measured in processes of their own, files of results, commands and names on their lines.

A process is ``python -m tools.harness MODULE:FUNCTION OPTIONS``. The function makes records of items, one of each, in
their order. Items come in, and records go out, as JSON, one a line; what else is printed goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

# Processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failed:
    """Why an item has no record.

    Attributes:
        blame: "time", or "process" where that has died.
        why: in a line.
        said: all that the process wrote to standard error.
    """

    blame: str
    why: str
    said: str = ""


class Process:
    """A process that makes records of items. A context, at whose end it is killed.

    Args:
        function: "module:function", from an iterator of items, and options, to an iterator of records.
        seconds: it is killed after so many.
        environment: variables that it has beside those of this process.
        options: of the function; JSON.
    """

    def __init__(
        self, function: str, *, seconds: float | None = None, environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.harness", function, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self._timer = threading.Timer(seconds or 0.0, self._process.kill)
        if seconds is not None:
            self._timer.start()

    def send(self, *items: Any, last: bool = False) -> None:
        """Hands over items, the last ones or not; the process may have died already."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("".join(f"{json.dumps(item)}\n" for item in items))
            self._process.stdin.flush()
            if last:
                self._process.stdin.close()
        except BrokenPipeError:
            pass

    def records(self) -> Iterator[Any]:
        """The records, as they come, until the process ends or writes no more."""
        assert self._process.stdout is not None
        yield from map(json.loads, self._process.stdout)

    def death(self) -> Failed:
        """What the process, which has ended, died of."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()
        if code < 0:
            return Failed("process", f"the process died of {signal.Signals(-code).name}", said)
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no message")
        return Failed("process", f"the process ended with {code}: {last}", said)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._process.kill()
        with self._errors, suppress(BrokenPipeError), self._process:  # closes the pipes, and waits
            pass


def outcomes(function: str, items: Iterable[Any], *, seconds: float | None = None, **rest: Any) -> Iterator[Any]:
    """The record of each item, in order, or a `Failed`; after a crash the others go on in another process.

    Args:
        function, rest: as for `Process`.
        items: JSON.
        seconds: for all of them.
    """
    left, deadline = list(items), time.monotonic() + (seconds or 0.0)
    while left:
        remaining = None if seconds is None else max(0.0, deadline - time.monotonic())
        with Process(function, seconds=remaining, **rest) as process:
            process.send(*left, last=True)
            for record in process.records():
                left.pop(0)
                yield record
            death = process.death()
        if seconds is not None and time.monotonic() >= deadline:
            yield from (Failed("time", f"not done after {seconds:.0f} s") for _ in left)
            return
        if left:
            left.pop(0)
            yield death


def outcome(function: str, item: Any, **rest: Any) -> Any:
    """The record of one item, or a `Failed`: see `outcomes`."""
    (found,) = outcomes(function, [item], **rest)
    return found


def _answer(function: str, options: str) -> None:
    """The other side: reads items, writes records."""
    records = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # C++ prints there, too
    module, _, name = function.partition(":")
    for record in getattr(importlib.import_module(module), name)(map(json.loads, sys.stdin), **json.loads(options)):
        print(json.dumps(record), file=records, flush=True)


# Files -----------------------------------------------------------------------------------------------------


class ResultsError(ValueError):
    """A directory of results belongs to others, or a file in it is damaged; the message names it."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file, and moves it to `path` when it is complete."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ResultsError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path}: damaged ({error}); delete it and run again") from error


# Tables ----------------------------------------------------------------------------------------------------


def line(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(*columns: str, texts: int = 1, notes: int = 0) -> str:
    """The head of a Markdown table: the first columns are texts, the last ones notes, those between them numbers."""
    numbers = len(columns) - texts - notes
    return f"{line(*columns)}\n|{'---|' * texts}{'---:|' * numbers}{'---|' * notes}"


# Command lines ---------------------------------------------------------------------------------------------


class Lowering(str, Enum):
    """How compiled graphs run."""

    eager = "eager"
    inductor = "inductor"


def commands(about: str | None, *modules: ModuleType) -> typer.Typer:
    """An app with a command for each module: its ``main``, with the module's docstring as help."""
    app = typer.Typer(help=about, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
    for module in modules:
        told = (module.__doc__ or "").replace("Examples:\n", "\b\nExamples:")
        app.command(module.__name__.rpartition(".")[2], help=told)(module.main)
    return app


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


if __name__ == "__main__":
    _answer(*sys.argv[1:])
