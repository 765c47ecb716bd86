"""A random program as data: inputs, lines of Python, outputs; it prints as Python that a fixed test can hold."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = re.compile(r"[a-z]\d+")
IN_PLACE = re.compile(r"_\(|inplace")
BATCH = 6  # what "n" stands for


@dataclass(frozen=True)
class Input:
    """One input of a program, filled from its name alone.

    Attributes:
        shape: sizes; "n" is the batch.
        fill: "normal", "steps" (few values, so that ties and zeros abound), "positive", "large", "zeros", "special"
            (NaN and infinity among them), "mask", or a number: integers below it.
        grad: whether it needs a gradient.
        turned: whether its memory is in another order: that of channels-last images, or of a transposed matrix.
    """

    name: str
    shape: tuple[int | str, ...]
    fill: str | int = "normal"
    dtype: str = "float32"
    grad: bool = False
    turned: bool = False

    def make(self, batch: int = BATCH) -> Tensor:
        """The tensor, for a batch of this size."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        shape = [batch if size == "n" else int(size) for size in self.shape]
        dtype = getattr(torch, self.dtype)
        if isinstance(self.fill, int):
            return torch.randint(0, self.fill, shape, generator=generator, dtype=dtype)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        made = FILLS[self.fill](normal).to(dtype)
        if self.turned and made.dim() > 1:
            made = made.movedim(1, -1).contiguous().movedim(-1, 1)
        return made.requires_grad_(self.grad)


def _special(normal: Tensor) -> Tensor:
    flat = normal.flatten()
    flat[1::7], flat[2::11], flat[3::13] = torch.nan, torch.inf, -torch.inf
    return flat.view(normal.shape)


FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "steps": lambda x: (x * 2).round() / 2,
    "positive": lambda x: x.abs() + 0.1,
    "large": lambda x: x * 30,
    "zeros": torch.zeros_like,
    "special": _special,
    "mask": lambda x: x > 0,
}


@dataclass(frozen=True)
class Program:
    """A function of tensors.

    Attributes:
        inputs: in order; parameters and buffers among them.
        lines: assignments, in the names of inputs and earlier lines; ``n`` is the batch.
        outputs: names of what is returned.
        dynamic: whether the batch is symbolic.
    """

    inputs: tuple[Input, ...]
    lines: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: bool = False

    @property
    def source(self) -> str:
        """As a function ``program(n, ...)``."""
        names = ", ".join(["n", *(given.name for given in self.inputs)])
        body = "\n".join(f"    {line}" for line in (*self.lines, f"return {', '.join(self.outputs)},"))
        return f"def program({names}):\n{body}\n"

    @property
    def function(self) -> Callable[..., tuple[Any, ...]]:
        """The function itself."""
        names: dict[str, Any] = {"torch": torch, "F": F}
        exec(compile(self.source, "<program>", "exec"), names)
        return names["program"]

    def __repr__(self) -> str:
        inputs, lines, outputs = _block(map(_short, self.inputs)), _block(map(repr, self.lines)), repr(self.outputs)
        dynamic = "    dynamic=True,\n" if self.dynamic else ""
        return f"Program(\n    inputs={inputs},\n    lines={lines},\n    outputs={outputs},\n{dynamic})"


def pruned(program: Program) -> Program:
    """Without the lines and inputs that nothing comes of."""
    live, lines = set(program.outputs), []
    for line in reversed(program.lines):
        name, _, text = line.partition(" = ")
        if name in live or IN_PLACE.search(text):
            lines.append(line)
            live.update(NAME.findall(text))
    inputs = tuple(given for given in program.inputs if given.name in live)
    return replace(program, inputs=inputs, lines=tuple(reversed(lines)))


def _short(given: Input) -> str:
    """What is not a default."""
    told = [repr(given.name), repr(given.shape)]
    told += [f"fill={given.fill!r}"] if given.fill != "normal" else []
    told += [f"dtype={given.dtype!r}"] if given.dtype != "float32" else []
    told += [f"{name}=True" for name in ("grad", "turned") if getattr(given, name)]
    return f"Input({', '.join(told)})"


def _block(items: Iterable[str]) -> str:
    return "(" + "".join(f"\n        {item}," for item in items) + "\n    )"
