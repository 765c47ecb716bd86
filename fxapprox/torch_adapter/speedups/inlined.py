# pyright: reportPrivateImportUsage=false
"""Pointwise functions that Inductor fuses with what reads their results, lowered once however often they are called.

Inductor lowers every operator of every layer anew. The operators of a function become one value of its IR, whose
operands are holes; a call is that value with the operands in their places.

No patch, but turned off with them: each call is then lowered anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch._inductor.virtualized import V, ops

from fxapprox.torch_adapter.speedups import are_on

Loader = Callable[[Sequence[Any]], Any]
_bound: list[tuple[int, Sequence[Loader]]] = []  # the calls being written, each with its operands, the innermost last
_numbers = itertools.count(1)  # of calls, never given twice: an address could be another call's later


def inlined(function: Any, *operands: Any) -> Any:
    """The results of a graph module; in Inductor those of a function in its IR, as values that can be fused."""
    if isinstance(function, fx.GraphModule):
        return function(*operands)
    if not are_on():
        return _Lowering(function.graph_module).run(*operands)
    known = vars(V.graph).setdefault("_fxapprox_inlined", {})
    if function.name not in known:
        try:
            with patch.object(V.graph, "register_buffer", _refuse):
                known[function.name] = _Function(function.graph_module, operands)
        except _WantsMemory:
            known[function.name] = None
    found = known[function.name]
    return _Lowering(function.graph_module).run(*operands) if found is None else found.called(operands)


inlined._inductor_lowering_function = True  # type: ignore[attr-defined]  # Inductor calls it with values of its IR


def can_be_inlined(node: fx.Node) -> bool:
    """Whether an operator is pointwise, or a view that needs no memory to look at."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or node.target.overloadpacket in _OTHERS


_OTHERS = frozenset(
    (
        torch.ops.prims.convert_element_type, torch.ops.prims.iota, torch.ops.aten.view, torch.ops.aten.unsqueeze,
        torch.ops.aten.squeeze, torch.ops.aten.permute, torch.ops.aten.expand, torch.ops.aten.slice,
        torch.ops.aten.select, torch.ops.aten.scalar_tensor,
    )
)  # fmt: skip


def binding() -> int:
    """Tells apart the calls for which an operator of a function is written; 0 outside of all."""
    return _bound[-1][0] if _bound else 0


class _WantsMemory(Exception):
    """Inductor puts a value inside a function into memory: that is another one for each call."""


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise _WantsMemory


class _Function:
    """A function in Inductor's IR."""

    def __init__(self, gm: fx.GraphModule, operands: Sequence[Any]) -> None:
        from torch._inductor.ir import Pointwise

        holes = [
            Pointwise.create(
                device=operand.get_device(), dtype=operand.get_dtype(), ranges=list(operand.get_size()),
                inner_fn=partial(_operand, number, operand.get_dtype()),
            )
            for number, operand in enumerate(operands)
        ]  # fmt: skip
        self._results: Sequence[Any] = _Lowering(gm).run(*holes)

    def called(self, operands: Sequence[Any]) -> list[Any]:
        """The results for these operands."""
        from torch._inductor.ir import Pointwise

        call = next(_numbers), [operand.make_loader() for operand in operands]
        return [
            Pointwise.create(
                device=result.get_device(), dtype=result.get_dtype(), ranges=list(result.get_size()),
                inner_fn=partial(_result, result.make_loader(), call),
            )
            for result in self._results
        ]  # fmt: skip


class _Lowering(fx.Interpreter):
    """Runs a graph on values of Inductor's IR, without what Inductor decides of each of them."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        from torch._inductor.lowering import lowerings

        return lowerings[target](*args, **kwargs)


def _operand(number: int, dtype: torch.dtype, index: Sequence[Any]) -> Any:
    """Writes an operand of the innermost call as it stands outside of it; where operators are but counted, anything."""
    if not _bound:
        return ops.constant(0, dtype)
    own = _bound.pop()
    try:
        return own[1][number](index)
    finally:
        _bound.append(own)


def _result(load: Loader, call: tuple[int, Sequence[Loader]], index: Sequence[Any]) -> Any:
    _bound.append(call)
    try:
        return load(index)
    finally:
        _bound.pop()
