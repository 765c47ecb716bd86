"""The names of models, and what builds them."""

from __future__ import annotations

import importlib

from tools.harness import select
from tools.zoo.models.zoo import ZOO
from tools.zoo.subject import Builder


def chosen(patterns: str) -> list[str]:
    """The zoo's names that contain one of the comma-separated patterns, and every "module:builder" among these."""
    own = [part.strip() for part in patterns.split(",") if ":" in part]
    rest = ",".join(part for part in patterns.split(",") if ":" not in part)
    return [*(select(ZOO, rest) if rest.strip() or not own else []), *own]


def builder(name: str) -> Builder:
    """What builds the model."""
    if name in ZOO:
        return ZOO[name]
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
