"""JSON files of ours: what is written with a schema number, and the errors of reading something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from fxapprox.errors import FxApproxError

T = TypeVar("T")


def write(path: str | Path, schema: int, content: dict[str, Any]) -> None:
    """Writes the content with its schema number, and the torch version that it comes from."""
    Path(path).write_text(json.dumps({"schema": schema, "torch": torch.__version__, **content}, indent=1) + "\n")


def read(path: str | Path, schema: int, parse: Callable[[Any], T], *, what: str, writer: str) -> T:
    """What ``parse`` makes of the file's content.

    Args:
        what: the file holds, for messages.
        writer: the function that writes such files, for messages.

    Raises:
        FxApproxError: there is no such file, it has another schema, or ``parse`` cannot read it.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["schema"] != schema:
            raise ValueError(f"schema {content['schema']}, this version reads {schema}")
        return parse(content)
    except OSError as error:
        raise FxApproxError(f"cannot read the {what}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FxApproxError(f"{path} holds no {what} that {writer} wrote: {error}") from None
