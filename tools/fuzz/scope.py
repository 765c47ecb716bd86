"""What a program in the making has: its values, so that the next line can be chosen to fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tools.fuzz.program import BATCH, Input

T = TypeVar("T")
LARGEST = 2048  # elements of a value
FLOATS = (torch.float32, torch.float64, torch.bfloat16)


class Scope:
    """Runs every line as it is added, on real tensors: their shapes and types decide what can come next.

    Attributes:
        dtype: of parameters, and of most inputs.
        inputs, lines: so far.
        values: {name: tensor}, in order.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], dtype: str) -> None:
        self.draw, self.dtype = draw, dtype
        self.inputs: list[Input] = []
        self.lines: list[str] = []
        self.values: dict[str, Tensor] = {}
        self._count = 0

    def choose(self, among: Sequence[T]) -> T:
        """One of these; the first is the simplest."""
        return self.draw(st.sampled_from(among))

    def integer(self, low: int, high: int) -> int:
        """A number in this range, both ends included."""
        return self.draw(st.integers(low, high))

    def maybe(self) -> bool:
        """True or False."""
        return self.draw(st.booleans())

    def add(self, kind: str, shape: Sequence[int | str], **rest: Any) -> str:
        """Adds an input and returns its name, which begins with ``kind``."""
        given = Input(self._name(kind), tuple(shape), **{"dtype": self.dtype, **rest})
        self.inputs.append(given)
        self.values[given.name] = given.make()
        return given.name

    def parameter(self, shape: Sequence[int | str], fill: str = "normal") -> str:
        """Adds a float input, which needs a gradient mostly."""
        return self.add("w", shape, fill=fill, grad=self.choose((True, True, True, False)))

    def pick(self, fits: Callable[[Tensor], bool] = torch.is_floating_point) -> str | None:
        """The name of a value that fits, late ones first; None if there is none."""
        names = [name for name, value in reversed(self.values.items()) if fits(value)]
        if not names:
            return None
        return self.choose(names[:3] if self.integer(0, 3) else names)

    def emit(self, text: str) -> str | None:
        """Adds the line ``name = text``; None if it fails on these values, or is not worth having."""
        torch.manual_seed(0)  # what comes next depends on the values: random ones must be the same again
        try:
            value = eval(text, {"torch": torch, "F": F, "n": BATCH}, self.values)
        except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
            return None
        if not _is_useful(value):
            return None
        name = self._name("v")
        self.lines.append(f"{name} = {text}")
        self.values[name] = value
        return name

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count - 1}"


def _is_useful(value: Any) -> bool:
    """Neither empty nor large, and of numbers that still mean something; NaN and infinity may be there."""
    if not isinstance(value, Tensor) or not 0 < value.numel() <= LARGEST or value.is_complex():
        return False
    if value.dtype not in FLOATS:
        return not value.dtype.is_floating_point
    finite = torch.where(value.detach().isfinite(), value.detach(), 0)
    return bool(finite.abs().max() < 1e4)
