"""Several small codes in one byte, and back, as plain tensor arithmetic that a compiler can vectorize.

The codes of one byte lie far apart in the tensor: element i of the first half shares a byte with element i of the
second half (halves, quarters or eighths of one dimension). Whole rows are then combined with whole rows; neighbours
would have to be shuffled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fxapprox.sizes import Size


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs ``8 // bits`` codes into each byte.

    Args:
        codes: int32, any shape, every element in [0, ``2**bits``).
        bits: 1, 2, 4 or 8.

    Returns: uint8.
    """
    per_byte = 8 // bits
    if per_byte == 1:
        return codes.to(torch.uint8)
    dim = split_dim(codes.shape, per_byte)
    if dim is None:
        flat = codes.reshape(-1)
        codes, dim = F.pad(flat, (0, -flat.shape[0] % per_byte)), 0
    size = codes.shape[dim] // per_byte
    packed = codes.narrow(dim, 0, size)
    for j in range(1, per_byte):
        packed = packed | (codes.narrow(dim, j * size, size) << (j * bits))
    return packed.to(torch.uint8)


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The codes back, int32 of ``shape`` (shifts of int32 are vectorized, those of uint8 are not)."""
    wide = packed.to(torch.int32)
    if bits == 8:
        return wide.reshape(shape)
    per_byte = 8 // bits
    dim = split_dim(shape, per_byte)
    axis = 0 if dim is None else dim
    places = [1] * (packed.dim() + 1)
    places[axis] = per_byte
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device).view(places)
    codes = (wide.unsqueeze(axis) >> shifts) & (2**bits - 1)
    if dim is None:
        return codes.reshape(-1).narrow(0, 0, math.prod(shape)).reshape(shape)
    return codes.reshape(shape)


def split_dim(shape: Sequence[int], per_byte: int) -> int | None:
    """The dimension that is cut in parts: the first whose size is known and divisible; None: flatten and pad."""
    for dim, size in enumerate(shape):
        if isinstance(size, int) and size > 0 and size % per_byte == 0:
            return dim
    return None


def packed_bytes(shape: Sequence[Size], bits: int) -> Size:
    """Bytes that :func:`pack` makes of codes of this shape."""
    return (math.prod(shape) * bits + 7) // 8
