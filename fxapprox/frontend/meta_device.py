"""Models on the meta device, which have shapes and no memory: fake tensors of a real device stand for their tensors.

Traced as they are, meta tensors give empty graphs, because AOTAutograd takes what is computed from them for nothing.
Fake tensors have no memory either, and are traced as tensors of their device would be.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxapprox import torch_adapter as adapter


@contextmanager
def stand_ins(
    model: Callable[..., Any], args: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], adapter.FakeTensorMode | None]]:
    """Puts fake tensors in place of all tensors of a model, if any of them or of its arguments is a meta tensor.

    Meta tensors are taken to be on the device of the others, or on the CPU. What is tied stays tied, and no memory is
    allocated. Tensors are found in the modules that a function refers to, and in the function's own variables.

    Yields: the arguments to call the model with, and the mode of the fake tensors, None where there are none.
    """
    places = list(_places(model))
    tensors = [*(place.tensor for place in places), *adapter.tensors_in(args)]
    if not any(tensor.is_meta for tensor in tensors):
        yield args, None
        return
    device = next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))
    mode = adapter.fake_mode()
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = adapter.fake_like(tensor, mode, device if tensor.is_meta else tensor.device)
        return made[id(tensor)]

    try:
        for place in places:
            place.put(fake(place.tensor))
        yield adapter.map_tensors(fake, args), mode
    finally:
        for place in places:
            place.put(place.tensor)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is kept: under a name in a dictionary, or in a variable of a function."""

    holder: dict[str, Any] | types.CellType
    name: str
    tensor: torch.Tensor

    def put(self, tensor: torch.Tensor) -> None:
        """Puts another tensor there."""
        if isinstance(self.holder, types.CellType):
            self.holder.cell_contents = tensor
        else:
            self.holder[self.name] = tensor


def _places(model: object) -> Iterator[_Place]:
    """Every place of a tensor in a model, or in the modules and functions that a function refers to."""
    seen: set[int] = set()
    stack: list[object] = [model]
    while stack:
        found = stack.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, nn.Module):
            stack += found.children()
            holders = (found._parameters, found._buffers, vars(found))
            yield from (_Place(d, k, v) for d in holders for k, v in d.items() if isinstance(v, torch.Tensor))
        elif isinstance(found, types.MethodType):
            stack += (found.__self__, found.__func__)
        elif isinstance(found, functools.partial):
            stack += (found.func, *found.args, *found.keywords.values())
        elif isinstance(found, types.FunctionType):
            for holder, name, value in _variables(found):
                if isinstance(value, torch.Tensor):
                    yield _Place(holder, name, value)
                else:
                    stack.append(value)


def _variables(function: types.FunctionType) -> Iterator[tuple[dict[str, Any] | types.CellType, str, object]]:
    """(where, its name there, value) of the variables around a function; other files' functions are left out."""
    for cell in function.__closure__ or ():
        try:
            yield cell, "", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    around = function.__globals__
    for name in function.__code__.co_names:
        value = around.get(name)
        if not isinstance(value, types.FunctionType) or value.__globals__ is around:
            yield around, name, value
