"""What steers the rewrite of a graph, as a key for Inductor's caches."""

from __future__ import annotations

import hashlib
import pathlib
from functools import cache

from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import TAUGHT
from fxapprox.options import Options
from fxapprox.passes import runner


@cache
def source_hash() -> str:
    """Identifies our source: a compiled graph in a cache is stale once any file of ours changes."""
    digest = hashlib.sha256()
    package = pathlib.Path(adapter.__file__).resolve().parents[1]
    passes = pathlib.Path(str(runner.__file__)).resolve().parent
    for folder in (package, passes):  # a link to ours is not followed
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()


def cache_key(options: Options) -> str | None:
    """The key; None (no caching) where the user's code without ``uuid`` steers the rewrite."""
    steered = options.key, sorted(TAUGHT.items()), sorted(runner.left_out())
    return options.key and f"fxapprox-{source_hash()}-{steered!r}"
