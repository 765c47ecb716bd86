# pyright: reportPrivateImportUsage=false
"""Patches ``compile_fx.post_grad_passes``: it does not visit our functions, which hold nothing that it looks for.

Saves: 0.7 s of a ResNet-18's first step at 4 bits (docs/performance.md). Torch: all that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from torch import fx

from fxapprox.torch_adapter.joint import Half
from fxapprox.torch_adapter.tracing import is_function_of_ours


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """Passes over graphs but ours."""
    from torch._inductor import compile_fx

    yield patch.object(compile_fx, "post_grad_passes", _of_others(compile_fx.post_grad_passes))


def _of_others(passes: Callable[..., None]) -> Callable[..., None]:
    def run(gm: fx.GraphModule, *args: Any) -> None:
        if not is_function_of_ours(gm):
            passes(gm, *args)

    return run
