"""A command line's target with other numbers of examples, and the largest that fits for each way to store."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxapprox import torch_adapter as adapter
from fxapprox.errors import DoesNotFit, TargetError
from fxapprox.frontend.target import Target
from fxapprox.measure.fit.largest import Batch, BatchFit, Needs, resident_bytes

WAYS: dict[str, Mapping[str, Any]] = {
    "exact mode": {"bits": None},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "4 bits, checkpoints": {"bits": 4, "checkpoint": "sqrt"},
}


def largest_batches(
    target: Target, memory: int, optimizer_bytes_per_parameter: int
) -> dict[str, BatchFit | DoesNotFit]:
    """The largest batch of plain torch.compile and of each of `WAYS`, or why there is none.

    Raises:
        TargetError: no argument has a dimension for examples.
        FxApproxError: the model could not be traced.
    """
    resident = resident_bytes(target.model, optimizer_bytes_per_parameter)

    def build(batch: int) -> Batch:
        return resized(target, batch)

    needs = {way: Needs(build, options, resident) for way, options in WAYS.items()}
    rows = {"torch.compile": _largest(next(iter(needs.values())), memory, plain=True)}
    return rows | {way: _largest(needs[way], memory, plain=False) for way in WAYS}


def _largest(needs: Needs, memory: int, *, plain: bool) -> BatchFit | DoesNotFit:
    try:
        return needs.largest(memory, plain=plain)
    except DoesNotFit as error:
        return error


def resized(target: Target, batch: int) -> Batch:
    """The target with this many examples: real ones again and again where they are integers, else any values.

    The loss's own tensors of the same first size are targets, and change with the inputs.
    """
    inputs = adapter.tensors_in(target.args)
    if not inputs or inputs[0].dim() == 0:
        raise TargetError("the batch is the first dimension of the first tensor in args, and there is none")
    count = len(inputs[0])

    def resize(x: Tensor) -> Tensor:
        return _with_rows(x, batch) if x.dim() > 0 and len(x) == count else x

    args = adapter.map_tensors(resize, target.args)
    loss, targets = _with_closure(target.loss, resize)
    return Batch(Target(target.model, args, loss, target.name).step, args, targets)


def _with_rows(x: Tensor, count: int) -> Tensor:
    """Floats are not written to: the system provides memory for what is touched, and tracing touches nothing."""
    if not x.is_floating_point():
        return x[torch.arange(count, device=x.device) % len(x)]
    shape = (count, *x.shape[1:])
    dense = len(x) > 1 and x.stride(0) == x[0].numel()
    made = x.new_empty(shape) if not dense else torch.empty_strided(shape, x.stride(), dtype=x.dtype, device=x.device)
    return made.requires_grad_(x.requires_grad)


def _with_closure(
    loss: Callable[[Any], Any] | None, resize: Callable[[Tensor], Tensor]
) -> tuple[Callable[[Any], Any] | None, tuple[Tensor, ...]]:
    """The function with resized tensors in its closure, and those tensors."""
    if not isinstance(loss, types.FunctionType) or not loss.__closure__:
        return loss, ()
    contents = [cell.cell_contents for cell in loss.__closure__]
    made = [resize(value) if isinstance(value, Tensor) else value for value in contents]
    cells = tuple(types.CellType(value) for value in made)
    resized = types.FunctionType(loss.__code__, loss.__globals__, loss.__name__, loss.__defaults__, cells)
    return resized, tuple(value for value in made if isinstance(value, Tensor))
