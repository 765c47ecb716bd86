"""A random program as data: inputs, lines of Python, outputs; it prints as Python that a fixed test can hold."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

NAME = re.compile(r"[a-z]\d+")
IN_PLACE = re.compile(r"_\(|inplace")
SIZES = {"n": 6, "h": 4, "w": 5}  # what these stand for: batch, height and width
BATCH = SIZES["n"]


@dataclass(frozen=True)
class Input:
    """One input of a program, filled from its name alone.

    Attributes:
        shape: sizes; names of ``SIZES`` are symbolic in a dynamic program.
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

    def make(self, sizes: Mapping[str, int] = SIZES) -> Tensor:
        """The tensor, for a batch, height and width of these sizes."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
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
        dynamic: whether batch, height and width are symbolic.
        regions: names of lines in a row that the user has put into `torch.utils.checkpoint`.
    """

    inputs: tuple[Input, ...]
    lines: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: bool = False
    regions: tuple[tuple[str, ...], ...] = ()

    @property
    def source(self) -> str:
        """As a function ``program(n, ...)``."""
        names = ", ".join(["n", *(given.name for given in self.inputs)])
        lines = list(self.lines)
        for region in self.regions:
            own = [line for line in lines if _name(line) in region]
            if own:
                rest = (NAME.findall(line) for line in lines[lines.index(own[-1]) + 1 :])
                read = {*self.outputs, *chain.from_iterable(rest)}
                lines[lines.index(own[0]) : lines.index(own[-1]) + 1] = _again(own, [n for n in region if n in read])
        body = "\n".join(f"    {line}" for line in (*lines, f"return {', '.join(self.outputs)},"))
        return f"def program({names}):\n{body}\n"

    def function(self, again: Callable[..., Any] = checkpoint) -> Callable[..., tuple[Any, ...]]:
        """The function itself.

        Args:
            again: what runs the lines of a region, given as a function without arguments.
        """
        names: dict[str, Any] = {"torch": torch, "F": F, "checkpoint": again}
        exec(compile(self.source, "<program>", "exec"), names)
        return names["program"]

    def __repr__(self) -> str:
        inputs, lines, outputs = _block(map(_short, self.inputs)), _block(map(repr, self.lines)), repr(self.outputs)
        rest = "    dynamic=True,\n" if self.dynamic else ""
        rest += f"    regions={self.regions!r},\n" if self.regions else ""
        return f"Program(\n    inputs={inputs},\n    lines={lines},\n    outputs={outputs},\n{rest})"


def _name(line: str) -> str:
    return line.partition(" = ")[0]


def _again(lines: Sequence[str], returned: Sequence[str]) -> list[str]:
    """A region's lines as a function, and its call."""
    made = f"({', '.join(returned)},)"
    name = f"region_{_name(lines[0])}"
    return [
        f"def {name}():",
        *(f"    {line}" for line in lines),
        f"    return {made}",
        f"{made} = checkpoint({name}, use_reentrant=False)",
    ]


def pruned(program: Program) -> Program:
    """Without the lines and inputs that nothing comes of."""
    live, lines = set(program.outputs), []
    for line in reversed(program.lines):
        name, _, text = line.partition(" = ")
        if name in live or IN_PLACE.search(text):
            lines.append(line)
            live.update(NAME.findall(text))
    inputs = tuple(given for given in program.inputs if given.name in live)
    left = {_name(line) for line in lines}
    regions = (tuple(name for name in region if name in left) for region in program.regions)
    return replace(program, inputs=inputs, lines=tuple(reversed(lines)), regions=tuple(filter(None, regions)))


def _short(given: Input) -> str:
    """What is not a default."""
    told = [repr(given.name), repr(given.shape)]
    told += [f"fill={given.fill!r}"] if given.fill != "normal" else []
    told += [f"dtype={given.dtype!r}"] if given.dtype != "float32" else []
    told += [f"{name}=True" for name in ("grad", "turned") if getattr(given, name)]
    return f"Input({', '.join(told)})"


def _block(items: Iterable[str]) -> str:
    return "(" + "".join(f"\n        {item}," for item in items) + "\n    )"
