# pyright: reportPrivateImportUsage=false
"""Patches ``cpp.get_loop_body_lowp_fp``: a loop has floats of 32 bits if a code's bfloat16 scale is all that has 16.

As many elements as a vector holds of 16 bits would be taken at a time, and for that many AVX2 has no conversion from
bytes.

Saves: time of what decodes groups, with AVX2 (``tools.step_profile --without width``). Torch: all that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch._inductor.virtualized import V

from fxapprox.torch_adapter.joint import Half
from fxapprox.torch_adapter.tracing import is_part


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """How many bits the floats of a loop have."""
    from torch._inductor.codegen import cpp

    yield patch.object(cpp, "get_loop_body_lowp_fp", _not_for_radii(cpp.get_loop_body_lowp_fp))


def _not_for_radii(low_precision: Callable[..., Any]) -> Callable[..., Any]:
    """What a loop's floats are; those of codes do not count, where others have 32 bits."""
    from torch._inductor.codegen.cpp import DTYPE_LOWP_FP

    def found(body: Any) -> tuple[torch.dtype | None, bool]:
        blocks = (body.root_block, *body.subblocks.values())
        loaded = {node.args[1] for block in blocks for node in block.graph.nodes if node.target == "load"}
        parts = {name for name in loaded if is_part(name)}
        narrow = {name for name in loaded if V.graph.get_dtype(name) in DTYPE_LOWP_FP}
        return (None, True) if parts and narrow <= parts else low_precision(body)

    return found
