"""JSON files of ours: what is written with a schema number, and the errors of reading something else."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from fxapprox.errors import FxApproxError, shown
from fxapprox.files import typed
from fxapprox.files.written import write_text

T = TypeVar("T")

DEEPEST = 50  # ours are nested a handful of levels


def write(path: str | os.PathLike[str], schema: int, field: str, content: Any) -> None:
    """Writes the content in its field, with its schema number and the torch version that it comes from.

    Raises:
        FxApproxError: the file cannot be written.
    """
    document = {"schema": schema, "torch": torch.__version__, field: content}
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read(
    path: str | os.PathLike[str], schema: int, field: str, parse: Callable[[Any], T], *, what: str, writer: str
) -> T:
    """What ``parse`` makes of what ``write`` has put in the field.

    Args:
        parse: raises FxApproxError for what it cannot be made of.
        what: the file holds, for messages.
        writer: the function that writes such files, for messages.

    Raises:
        FxApproxError: there is no such file, it has another schema, or nothing can be made of its content.
    """
    try:
        text = _content(path)
    except (OSError, ValueError, TypeError) as error:  # ValueError: a name that no file can have
        raise FxApproxError(f"cannot read the {what}: {shown(path)}: {error}") from None
    try:
        document = loads(text.decode())
        if type(document) is dict and "schema" in document:
            found = document["schema"]
            ok = type(found) is int and found == schema
            typed.require(ok, found, "schema", f"{schema}, what this version reads")
        typed.names(document, ("schema", "torch", field), "")
        typed.read(str, document["torch"], "torch")
        return parse(document[field])
    except (ValueError, FxApproxError) as error:
        raise FxApproxError(f"{path} holds no {what} that {writer} wrote: {error}; write it again") from None


def loads(text: str) -> Any:
    """A JSON document, strictly: a name stands once in an object, and numbers are finite.

    Raises:
        ValueError: it is something else, or nested too deeply.
    """
    if _depth(text) > DEEPEST:  # the decoder's recursion can overflow the stack: torch raises Python's limit
        raise ValueError("it is nested too deeply")
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)


def _depth(text: str) -> int:
    """How deeply lists and objects stand in each other; brackets in strings do not count."""
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|([][{}])', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket, 0)
        deepest = max(deepest, depth)
    return deepest


def _content(path: str | os.PathLike[str]) -> bytes:
    place = Path(path)
    if not stat.S_ISREG(place.stat().st_mode):  # a directory, or a device or pipe that may never end
        raise ValueError("it is no regular file")
    return place.read_bytes()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the name {shown(twice)} stands twice in one object")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{shown(text)} is too large")
    return number
