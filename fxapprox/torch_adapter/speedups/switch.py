"""The list of the patches, which are on while a half is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fxapprox.torch_adapter.joint import Half
from fxapprox.torch_adapter.speedups import (
    are_on,
    byte_loads,
    cpp_files,
    dtype_rules,
    fewer_passes,
    float_loops,
    indexing,
    loop_tails,
    same_values,
    traced_once,
)

PATCHES = (
    dtype_rules,
    same_values,
    fewer_passes,
    traced_once,
    indexing,
    loop_tails,
    float_loops,
    byte_loads,
    cpp_files,
)


@contextmanager
def sped_up(half: Half) -> Iterator[None]:
    """Compiles what is compiled inside with all patches, unless they are turned off."""
    with ExitStack() as stack:
        if are_on():
            for each in (one for file in PATCHES for one in file.patches(half)):
                stack.enter_context(each)
        yield
