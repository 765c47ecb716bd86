"""Which elements share a range, and how they lie in memory: a tensor of groups, whose dimension 1 runs within each.

A group is a run of neighbours in the value's own order, for an image pixels of one channel. Where Inductor lays out
images channels-last, loops run over channels first; codes that lie in the other order would be read and written across
memory. There the same groups lie side by side: (runs of pixels, pixels in a run, channels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxapprox.sizes import Size
from fxapprox.torch_adapter import IN_ORDER

SMALLEST, LARGEST = 64, 256
RUN = 128  # elements of a group where sizes are symbolic


def group_shape(shape: Sequence[Any]) -> tuple[Any, int]:
    """(groups, elements in each) for a value of this shape.

    A group is a run of trailing dimensions: for (N, C, H, W) the pixels of one channel, for (B, T, C) one row; from 64
    to 256 elements where the sizes allow it. Symbolic sizes count groups; where too few elements stand behind the last
    of them, a group is a run of the whole value, padded with zeros at its end.
    """
    if is_padded(shape):
        return (math.prod(shape) + RUN - 1) // RUN, RUN
    lead, trailing = _trailing(shape)
    size = trailing
    if trailing > LARGEST:
        size = max((d for d in range(SMALLEST, LARGEST + 1) if trailing % d == 0), default=trailing)
    size = max(size, 1)
    return math.prod(shape[:lead]) * (trailing // size), size


def is_padded(shape: Sequence[Any]) -> bool:
    """Whether groups cross symbolic sizes."""
    lead, trailing = _trailing(shape)
    return lead > 0 and trailing < SMALLEST // 2


def _trailing(shape: Sequence[Any]) -> tuple[int, int]:
    """(the first of the dimensions that a group is a run of, how many elements these have)."""
    trailing, lead = 1, len(shape)
    while lead > 0 and isinstance(shape[lead - 1], int) and trailing < SMALLEST:
        lead -= 1
        trailing *= shape[lead]
    return lead, trailing


def groups_shape(shape: Sequence[Any], *, channels_last: bool) -> tuple[Any, ...]:
    """Sizes of the tensor of groups for a value of this shape: (groups, elements), or (runs, elements, channels).

    Never four dimensions: those Inductor takes for an image, and lays out as it likes.
    """
    groups, size = group_shape(shape)
    if not (channels_last and _in_channels(shape, size)):
        return groups, size
    count, channels, height, width = shape
    return count * (height * width // size), size, channels


def into_groups(x: Tensor, *, channels_last: bool) -> Tensor:
    """The value as a tensor of groups."""
    shape = groups_shape(x.shape, channels_last=channels_last)
    if len(shape) == 3:
        return x.permute(0, 2, 3, 1).reshape(shape)
    if is_padded(x.shape):  # not by F.pad: it would fix the sizes
        room = x.new_zeros(math.prod(shape))
        x = torch.slice_scatter(room, x.reshape(-1), 0, 0, math.prod(x.shape))
    return x.reshape(shape)


def from_groups(groups: Tensor, shape: Sequence[Any], *, channels_last: bool) -> Tensor:
    """The value of this shape from a tensor of groups."""
    if len(groups_shape(shape, channels_last=channels_last)) == 3:
        count, channels, height, width = shape
        return groups.reshape(count, height, width, channels).permute(0, 3, 1, 2)
    if is_padded(shape):
        groups = groups.reshape(-1).narrow(0, 0, math.prod(shape))
    return groups.reshape(shape)


def in_memory_order(groups: Tensor) -> Tensor:
    """A tensor of groups or of their numbers, computed once into memory, in the order of its dimensions."""
    strides: list[Size] = [1]
    for size in reversed(groups.shape[1:]):
        strides.insert(0, strides[0] * size)
    return IN_ORDER(groups, strides)


def stored(part: Tensor) -> Tensor:
    """A part as it is stored: Inductor lays out results of three dimensions as it likes."""
    return part if part.dim() == 2 else in_memory_order(part)


def _in_channels(shape: Sequence[Any], size: int) -> bool:
    """Whether the value is an image whose groups lie each in one channel."""
    if len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
        return False
    pixels = shape[2] * shape[3]
    return shape[1] > 1 and size > 1 and pixels % size == 0
