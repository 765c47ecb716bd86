"""A graph as kernels: values, the loops and calls that make them, and which of these run as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxapprox.sizes import Size


@dataclass(eq=False, slots=True)
class Value:
    """A tensor: memory, or an expression that its readers compute.

    Attributes:
        name: of its node.
        size: in bytes.
        rows: the lengths of its loops: the products of its last sizes, symbolic ones by their hints.
        dtype: of its elements.
        reads: what the expression loads, and which part of it; None: the value lies in memory.
        ops: what the expression computes.
        heavy: whether it is costly to compute twice.
        channels_last: whether it is laid out so.
        part: the slice that computes it, by number; None: none does.
    """

    name: str
    size: Size
    rows: frozenset[int]
    dtype: torch.dtype
    reads: frozenset[tuple[Value, Any]] | None = None
    ops: frozenset[Any] = frozenset()
    heavy: bool = False
    channels_last: bool = False
    part: int | None = None

    @property
    def elements(self) -> int:
        """How many it has."""
        return max(self.rows)


@dataclass(eq=False, slots=True)
class Operation:
    """One loop nest, or one external kernel.

    Attributes:
        name: of the node that it ends with.
        makes: the values it puts into memory.
        reads: the values it takes from memory.
        rows: the lengths of its loops, as ``Value.rows``; none: external.
        whole: those of ``reads`` whose elements it reads where it writes.
        reduces: whether it has to end before its results can be read.
        scratch: bytes that it needs while it runs.
        part: the slice that it is in, by number: slices are functions, and fuse with nothing outside.
    """

    name: str
    makes: tuple[Value, ...]
    reads: frozenset[Value]
    rows: frozenset[int] = frozenset()
    whole: frozenset[Value] = frozenset()
    reduces: bool = False
    scratch: Size = 0
    part: int | None = None


@dataclass(slots=True)
class Kernel:
    """Operations that run as one.

    Attributes:
        name: of its last operation.
        makes: values in memory afterwards.
        reads: values it takes from memory.
        whole: by result, those values whose place it may take: it is made in the last loop that reads them.
        scratch: bytes that it needs while it runs.
        frees: whether what has been read for the last time is freed after it.
        part: as that of its operations.
    """

    name: str
    makes: tuple[Value, ...]
    reads: frozenset[Value]
    whole: Mapping[Value, frozenset[Value]] = field(default_factory=dict)
    external: bool = False
    scratch: Size = 0
    frees: bool = True
    part: int | None = None


@dataclass(slots=True)
class Lowered:
    """A graph as kernels.

    Attributes:
        kernels: in order.
        inputs: the tensors it takes, by name.
        outputs: what it returns, in order; None for what is no tensor.
    """

    kernels: list[Kernel]
    inputs: dict[str, Value]
    outputs: list[Value | None]
