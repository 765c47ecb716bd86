# pyright: reportPrivateImportUsage=false
"""Patches ``CppVecKernel._get_vec_load_line``: with AVX2 eight bytes of a code are loaded by one instruction.

``loadu`` with a count puts them into a vector of ones in memory first, which takes longer than all of the decoder's
arithmetic. The ones keep a division from failing; nothing is divided by a code.

Saves: time of every kernel that decodes, with AVX2 (``tools.step_profile --without loads``). Torch: all that are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch._inductor.virtualized import V

from fxapprox.torch_adapter.custom_ops import codes_of
from fxapprox.torch_adapter.joint import Half
from fxapprox.torch_adapter.tracing import is_part


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """A load of a whole vector's share of codes."""
    from torch._inductor.codegen.cpp import CppVecKernel

    yield patch.object(CppVecKernel, "_get_vec_load_line", _codes_at_once(CppVecKernel._get_vec_load_line))


def _codes_at_once(load_line: Callable[..., str]) -> Callable[..., str]:
    """Writes the load of a few bytes of a code, a quarter of a vector, as one instruction."""
    from torch._inductor.cpu_vec_isa import VecAVX2, pick_vec_isa

    def line(self: Any, var: str, index: Any, dtype: torch.dtype, load_mask: Any = None) -> str:
        written = load_line(self, var, index, dtype, load_mask)
        whole = self.tail_size is None and self.num_elems == 8 and isinstance(pick_vec_isa(), VecAVX2)
        names = [name for name, argument in self.args.input_buffers.items() if argument == var]
        coded = any(is_part(name) or name in codes_of(V.graph) for name in names)
        if dtype != torch.uint8 or load_mask is not None or not whole or not coded:
            return written
        return re.sub(r"::loadu\((.*), [^,]*\)$", r"::loadu_one_fourth(\1)", written)

    return line
