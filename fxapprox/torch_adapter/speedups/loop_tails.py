# pyright: reportPrivateImportUsage=false
"""Patches ``CppKernelProxy.codegen_functions``: a loop over whole vectors gets no code for its empty tail.

Inductor writes that code, and then leaves it out. Reductions are left alone: they choose their accumulators by what
kind of tail they have.

Saves: one of the three versions of every such loop. Torch: all that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch._inductor.config as inductor_config

from fxapprox.torch_adapter.joint import Half


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """The code of loops."""
    from torch._inductor.codegen.cpp import CppKernelProxy

    yield patch.object(CppKernelProxy, "codegen_functions", _without_empty_tails(CppKernelProxy.codegen_functions))


def _without_empty_tails(codegen: Callable[..., None]) -> Callable[..., None]:
    """Writes the code of some loops; that for their tails only if there are any."""
    from torch._inductor.codegen.cpp import LoopNest

    def written(self: Any, functions: Any, sizes: Sequence[tuple[Any, Any]]) -> None:
        wanted, tile = inductor_config.cpp.enable_loop_tail_vec, LoopNest.tile
        if not wanted or any(reduced for _, reduced in sizes):
            return codegen(self, functions, sizes)

        def tiled(self: Any, depth: int, factor: int) -> Any:
            loop = tile(self, depth, factor)
            tails = any(each.size != each.tiled_size for each in self.loops if each.steps != 1)
            inductor_config.cpp.enable_loop_tail_vec = tails
            return loop

        with (
            inductor_config.patch({"cpp.enable_loop_tail_vec": wanted}),  # and back to that afterwards
            patch.object(LoopNest, "tile", tiled),
        ):
            return codegen(self, functions, sizes)

    return written
