"""The batches that an audit runs: those it is given, or equal parts of a single one."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from fxapprox import torch_adapter as adapter
from fxapprox.errors import OptionError


@dataclass(frozen=True)
class Batch:
    """What one step is run on.

    Attributes:
        args: the model's arguments.
        targets: what the loss gets after the model's output.
        closed: what the loss's closure holds.
    """

    args: tuple[Any, ...]
    targets: tuple[Any, ...] = ()
    closed: tuple[Any, ...] = ()

    @property
    def examples(self) -> int:
        """The first size of the first argument; 0 where it has none."""
        inputs = adapter.tensors_in(self.args)
        return len(inputs[0]) if inputs and inputs[0].dim() else 0


class Loss:
    """A loss whose closure's tensors can be exchanged, so that targets in it can be those of a part of the batch.

    Args:
        function: of the model's output and a batch's targets; None: the output is the loss.
    """

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self.function, self.closed = function, ()
        self._cells: tuple[types.CellType, ...] = ()
        if isinstance(function, types.FunctionType) and function.__closure__:
            self.closed = tuple(cell.cell_contents for cell in function.__closure__)
            self._cells = tuple(types.CellType(value) for value in self.closed)
            self.function = _with_cells(function, self._cells)

    def __call__(self, output: Any, targets: Sequence[Any] = ()) -> Any:
        return output if self.function is None else self.function(output, *targets)

    def use(self, batch: Batch) -> None:
        """Puts the batch's tensors into the closure."""
        for cell, value in zip(self._cells, batch.closed, strict=True):
            cell.cell_contents = value


def batches_of(given: Any, count: int, targets: int, loss: Loss) -> list[Batch]:
    """The batches in what a caller gave: one (a tensor, tuple or list), or the first of any other iterable of such.

    Raises:
        OptionError: there is none, or one is something else or has too few elements for the targets.
    """
    many = isinstance(given, Iterable) and not isinstance(given, (Tensor, tuple, list, str, bytes, dict))
    found = [_batch(each, targets, loss) for each in (islice(given, count) if many else (given,))]
    if not found:
        raise OptionError("batch: the iterable gave no batches")
    return found


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """Up to ``count`` equal parts of a batch, fewer if it has fewer examples; what is left over is in none.

    A tensor has examples if its first size is that of the first argument.
    """
    examples = batch.examples
    size = examples // min(count, examples) if examples else 0

    def part(value: Any, index: int) -> Any:
        def rows(x: Tensor) -> Tensor:
            if x.dim() == 0 or len(x) != examples:
                return x
            return x.detach()[index * size : (index + 1) * size].clone().requires_grad_(x.requires_grad)

        return adapter.map_tensors(rows, value)

    return [
        Batch(part(batch.args, i), part(batch.targets, i), part(batch.closed, i))
        for i in range(min(count, examples))
    ]  # fmt: skip


def _batch(given: Any, targets: int, loss: Loss) -> Batch:
    args = (given,) if isinstance(given, Tensor) else given
    if not isinstance(args, (tuple, list)) or not adapter.tensors_in(args):
        raise OptionError(
            "batch: expected a tensor, a tuple or list of arguments with one, or an iterable of such,"
            f" got {type(given).__name__}"
        )
    if targets >= len(args):
        raise OptionError(f"targets={targets}: a batch has {len(args)} elements, and the model needs one of them")
    split = len(args) - targets
    return Batch(tuple(args[:split]), tuple(args[split:]), loss.closed)


def _with_cells(function: types.FunctionType, cells: tuple[types.CellType, ...]) -> types.FunctionType:
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )  # fmt: skip
    made.__kwdefaults__ = function.__kwdefaults__
    return made
