"""Arithmetic that runs on torch's tensors and on numpy's arrays alike.

On a channel's few numbers torch takes several times as long as numpy: it is its dispatch that counts there. So what the
codecs compute of channels (``torch_adapter.small``) is written in what both have under the same names: operators, and
``where``, ``clip``, ``copysign``, ``maximum`` and ``round`` of the module that :func:`module_of` gives.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch

Array = Any  # a tensor or a numpy array


def module_of(x: Array) -> Any:
    """torch or numpy, whichever the array is of."""
    return torch if isinstance(x, torch.Tensor) else numpy


def cast(x: Array, dtype: Any) -> Array:
    """The array in another type, one of its own module's."""
    return x.to(dtype) if isinstance(x, torch.Tensor) else x.astype(dtype, copy=False)
