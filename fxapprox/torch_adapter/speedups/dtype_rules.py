# pyright: reportPrivateImportUsage=false
"""Patches ``DtypePropagationOpsHandler``: Inductor's table of dtype rules fills itself in once, not for every operator.

Saves: the filling in, for each operator of each kernel. Torch: all that are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from unittest.mock import patch

from fxapprox.torch_adapter.joint import Half


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """The table is one object, which only its first making fills."""
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler

    DtypePropagationOpsHandler()
    yield patch.object(DtypePropagationOpsHandler, "__init__", lambda self: None)
