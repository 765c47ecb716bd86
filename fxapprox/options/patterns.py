"""Patterns of module paths, as in ``bits={"layers.*.attn": 8, "*": 4}``: which modules they cover, and which wins."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def covers(pattern: str, module: str) -> bool:
    """Whether the pattern matches this module path or that of a module around it; "*" also matches the top, ""."""
    names = module.split(".")
    return any(fnmatchcase(".".join(names[:end]), pattern) for end in range(1, len(names) + 1))


def winner(patterns: Iterable[str], module: str) -> str | None:
    """Of the patterns that cover a module, the one with most literal characters; None: none covers it."""
    return max((pattern for pattern in patterns if covers(pattern, module)), key=_literals, default=None)


def close_to(pattern: str, paths: Sequence[str]) -> list[str]:
    """What somebody may have meant whose pattern covers none of these paths; three at most."""
    return _deeper(pattern, paths) or difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4)


def _literals(pattern: str) -> int:
    return sum(letter not in "*?[]" for letter in pattern)


def _deeper(pattern: str, paths: Sequence[str]) -> list[str]:
    """The pattern as it would match inside of modules: "encoder.layer.*" for "layer.*"; three at most."""
    cuts = ((path.split(".")[:i], path.split(".")[i:]) for path in paths for i in range(1, path.count(".") + 1))
    found = (".".join([*outer, pattern]) for outer, inner in cuts if covers(pattern, ".".join(inner)))
    return list(dict.fromkeys(found))[:3]
