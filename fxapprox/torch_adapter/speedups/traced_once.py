# pyright: reportPrivateImportUsage=false
"""Patches ``Pointwise.make_loader`` in backward: an expression that is read at two places of another is traced once.

Inductor traces it twice, what it reads four times, and so on; the printer then drops the copies. Not in forward: how
Inductor splits a loop depends on how many operators it counts, and forward's own loops are to be those of plain
torch.compile.

Saves: the copies, of some thirty operators for each reader of a decoded value. Torch: all that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from torch._inductor.virtualized import V

from fxapprox.torch_adapter.joint import Half
from fxapprox.torch_adapter.speedups.inlined import binding


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """For backward alone."""
    from torch._inductor.ir import Pointwise

    if half == "backward":
        yield patch.object(Pointwise, "make_loader", _traced_once(Pointwise.make_loader))


def _traced_once(make_loader: Callable[[Any], Callable[..., Any]]) -> Callable[[Any], Callable[..., Any]]:
    """A pointwise value's function, which gives what it gave before, as long as the same trace goes on."""
    from torch._inductor.virtualized import NullKernelHandler

    def made(self: Any) -> Callable[..., Any]:
        if (known := vars(self).get("_fxapprox_loader")) is not None:
            return known
        load, traced, handler = make_loader(self), {}, None

        def loader(index: Sequence[Any]) -> Any:
            nonlocal traced, handler
            if not isinstance(V.kernel, NullKernelHandler):
                return load(index)  # code is being written: a name may be out of scope by now
            if handler is not V.get_ops_handler():
                traced, handler = {}, V.get_ops_handler()
            key = binding(), *index
            if key not in traced:
                traced[key] = load(index)
            return traced[key]

        object.__setattr__(self, "_fxapprox_loader", loader)
        return loader

    return made
