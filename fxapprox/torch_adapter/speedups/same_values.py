# pyright: reportPrivateImportUsage=false
"""Patches ``fx_utils._is_fake_tensor_same``: a value is the same as itself.

What Inductor knows of a value it compares with what it knew before, and takes the same for another: all that follows
from the result of a call of a function is then worked out again, four times a step.

Saves: 1.4 of 3.4 s for a ResNet-50 at 4 bits (docs/performance.md). Torch: where the function is there; needed in 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from fxapprox.torch_adapter.joint import Half


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """Nothing, where torch does not ask."""
    from torch._inductor import fx_utils

    if (compare := getattr(fx_utils, "_is_fake_tensor_same", None)) is not None:
        yield patch.object(fx_utils, "_is_fake_tensor_same", _same_if_identical(compare))


def _same_if_identical(compare: Callable[..., bool]) -> Callable[..., bool]:
    """Compares two values, of which none differs from itself."""

    def same(new: Any, old: Any, *args: Any, **kwargs: Any) -> bool:
        return new is old or compare(new, old, *args, **kwargs)

    return same
