"""Several small codes in one byte, and back, as plain tensor arithmetic that a compiler can vectorize.

Whole rows are combined with whole rows; neighbours within a row would have to be shuffled. Rows that share bytes follow
each other, so that a slice of rows can be unpacked alone. The loop that makes the values cannot pack: it writes codes
of a byte each, and a second loop reads these, a quarter of what the values are. Codes of rows that are long enough for
vectors, and have a scale each, are packed within the row, element i of its first half with element i of its second:
Inductor then makes them in the loop over rows that finds the scales, while the row is in cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fxapprox.sizes import Size
from fxapprox.torch_adapter import code_in_memory

ROWS = {1: 8, 2: 4, 3: 8, 4: 2, 8: 1}  # elements that share bytes


def pack(codes: Tensor, bits: int, *, within: bool = False) -> Tensor:
    """Packs ``8 // bits`` codes into each byte; of 3 bits, the two lower ones first, then all upper ones.

    Args:
        codes: whole numbers in any type, any shape, every element in [0, ``2**bits``). They are packed as float32: from
            there to uint8 there are vector instructions everywhere, from int32 AVX2 has none.
        bits: 1, 2, 3, 4 or 8.
        within: elements of the same row share a byte, where its length allows it.

    Returns: uint8.
    """
    codes = codes.to(torch.float32)
    if bits == 8:
        return codes.to(torch.uint8)
    dim = split_dim(codes.shape, ROWS[bits], within=within)
    if not within:
        codes = code_in_memory(codes.to(torch.uint8)).to(torch.float32)
    if dim is None:
        flat = codes.reshape(-1)
        codes, dim = F.pad(flat, (0, -flat.shape[0] % ROWS[bits])), 0
    if bits == 3:
        # read at many places: Inductor computes it once, into memory, and bytes take a quarter of it
        narrow = codes.to(torch.uint8).to(torch.int32)
        low, high = _pack((narrow & 3).to(torch.float32), 2, dim), _pack((narrow >> 2).to(torch.float32), 1, dim)
        if not _in_rows(codes.shape, dim):
            return torch.cat([low, high], dim)
        return torch.cat([low.unflatten(0, (-1, 2)), high.unsqueeze(1)], 1).flatten(0, 1)
    return _pack(codes, bits, dim)


def _pack(codes: Tensor, bits: int, dim: int) -> Tensor:
    """The codes of a byte, each times its place's power of two, added up; in the memory layout of ``codes``.

    They have one reader, the sum, which Inductor unrolls (up to seven terms): of codes with several readers it would
    make a tensor first. The sum is of bytes already: it may be too long for Inductor to go on with, who then writes it
    to memory.
    """
    order = codes.dim_order()
    permuted = list(order) != sorted(order)
    dense, axis = codes.permute(order) if permuted else codes, order.index(dim)
    parts = (-1, 8 // bits) if _in_rows(codes.shape, dim) else (8 // bits, -1)
    place = axis + parts.index(8 // bits)
    powers = (1 << _shifts(bits, place, dense)).to(dense.dtype)
    placed = (dense.unflatten(axis, parts) * powers).to(torch.uint8)
    if bits == 1:
        placed = placed.unflatten(place, (2, 4)).sum(place, dtype=torch.uint8)
    packed = placed.sum(place, dtype=torch.uint8)
    return packed.permute([order.index(d) for d in range(len(order))]) if permuted else packed


def unpack(packed: Tensor, bits: int, shape: Sequence[int], *, within: bool = False) -> Tensor:
    """The codes back, int32 of ``shape`` (shifts of int32 are vectorized, those of uint8 are not)."""
    wide = packed.to(torch.int32)
    if bits == 8:
        return wide.reshape(shape)
    dim = split_dim(shape, ROWS[bits], within=within)
    axis = 0 if dim is None else dim
    place = axis + (dim is not None and _in_rows(shape, axis))
    if bits == 3:
        if place > axis:
            wide = wide.reshape(-1, 3, *shape[1:])
            low, high = wide.narrow(place, 0, 2).flatten(axis, place), wide.select(place, 2)
        else:
            upper = packed.shape[axis] // 3
            low, high = wide.narrow(axis, 0, 2 * upper), wide.narrow(axis, 2 * upper, upper)
        low, high = (_unpack(each, n, place).flatten(axis, axis + 1) for each, n in ((low, 2), (high, 1)))
        codes = low | (high << 2)
    else:
        codes = _unpack(wide, bits, place)
    if dim is None:
        return codes.reshape(-1).narrow(0, 0, math.prod(shape)).reshape(shape)
    return codes.reshape(shape)


def _unpack(wide: Tensor, bits: int, axis: int) -> Tensor:
    """The codes with one dimension more, which says which of the codes of a byte it is."""
    return (wide.unsqueeze(axis) >> _shifts(bits, axis, wide)) & (2**bits - 1)


def _shifts(bits: int, axis: int, like: Tensor) -> Tensor:
    """How far each code of a byte is shifted, along a dimension more than ``like`` has."""
    places = [1] * (like.dim() + 1)
    places[axis] = 8 // bits
    return torch.arange(0, 8, bits, dtype=torch.int32, device=like.device).view(places)


def split_dim(shape: Sequence[int], rows: int, *, within: bool = False) -> int | None:
    """The dimension that is cut in parts; None: flatten and pad, as also where there is no element.

    Of those whose size is known and divisible the first, or, within rows, the last.
    """
    known = {dim: size for dim, size in enumerate(shape) if isinstance(size, int)}
    found = [dim for dim, size in known.items() if size % rows == 0] if 0 not in known.values() else []
    return (found[-1] if within else found[0]) if found else None


def _in_rows(shape: Sequence[int], dim: int) -> bool:
    """Whether what shares a byte are rows, one behind the other; else it is a part of the dimension with a part."""
    return dim == 0 and len(shape) > 1


def packed_bytes(shape: Sequence[Size], bits: int) -> Size:
    """Bytes that :func:`pack` makes of codes of this shape."""
    return (math.prod(shape) + ROWS[bits] - 1) // ROWS[bits] * (ROWS[bits] * bits // 8)
