# pyright: reportPrivateImportUsage=false
"""Operators of ours: words to Inductor about a value, and arithmetic on few numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
import torch._inductor.inductor_prims
from torch._inductor.virtualized import V

_LIBRARY = torch.library.Library("fxapprox", "DEF")
_LIBRARY.define("in_memory(Tensor(a) x) -> Tensor(a)")
_LIBRARY.impl("in_memory", lambda x: x, "CompositeExplicitAutograd")
# Nothing but a word to Inductor: the operand, computed once into memory, in whatever layout suits its surroundings.
IN_MEMORY = torch.ops.fxapprox.in_memory.default
_LIBRARY.define("fence(Tensor(a) x) -> Tensor(a)")
_LIBRARY.impl("fence", lambda x: x, "CompositeExplicitAutograd")
# The operand; Inductor fuses nothing across it.
FENCE = torch.ops.fxapprox.fence.default
# The operand, computed once into memory, with the strides that are given.
IN_ORDER = torch.ops.prims.inductor_force_stride_order.default


def lower_hints() -> None:
    """Tells Inductor what IN_MEMORY and FENCE mean."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering

    class Fence(ir.ExternKernel):
        """An external kernel that says it writes to its operand, and does nothing."""

        def __init__(self, operand: Any) -> None:
            layout = ir.NoneLayout(device=operand.get_device())
            super().__init__(None, layout, self.unwrap_storage([operand]), ())
            V.graph.mark_buffer_mutated(operand.get_name())
            self.name = V.graph.register_buffer(self)
            V.graph.register_operation(self)

        def codegen(self, wrapper: Any) -> None:
            pass

        def should_allocate(self) -> bool:
            return False

        def get_mutation_names(self) -> Sequence[str]:
            return [self.input_name(0)]

    def in_memory(x: Any) -> Any:
        code = x.get_dtype() == torch.uint8
        if code and x.get_device().type != "cpu":
            return x  # there the kernel that makes codes packs them
        x.realize()
        if code:
            codes_of(V.graph).add(x.get_name())
        return x

    def fence(x: Any) -> Any:
        x.realize()
        Fence(x)
        return x

    meanings: dict[Any, Callable[..., Any]] = {IN_MEMORY: in_memory, FENCE: fence}
    for target, lower in meanings.items():
        if target not in lowerings:
            register_lowering(target, type_promotion_kind=None)(lower)


def codes_of(graph: Any) -> set[str]:
    """The buffers of a graph in Inductor that hold codes before they are packed."""
    return vars(graph).setdefault("_fxapprox_codes", set())


def materialize(x: torch.Tensor) -> torch.Tensor:
    """``x``, computed once into memory: Inductor would compute it again for every element that reads it."""
    return IN_ORDER(x, x.stride())


def code_in_memory(codes: torch.Tensor) -> torch.Tensor:
    """``codes``, bytes; on the CPU computed once into memory in whatever layout suits what they are computed from."""
    return IN_MEMORY(codes)


Rows = Sequence[Any]
Arithmetic = Callable[..., tuple[Rows, Rows]]


def small(arguments: str, kept: Sequence[torch.dtype | None] = ()) -> Callable[[Arithmetic], Arithmetic]:
    """Makes an operator of arithmetic on a few numbers, such as a channel's statistics, for graphs on the CPU.

    Inductor calls it instead of writing C++ for each of its operators, which takes it longer than the elements' own
    code. There it runs on numpy's arrays, which are quicker at few numbers. On other devices each operator would be a
    launch: there the function is traced as it stands, and its rows are put into memory.

    The function takes tensors or arrays (of at least 32 bits where they are floats), and gives rows, which are
    broadcast together, and what is kept.

    Args:
        arguments: the schema's, "Tensor mean, int bits".
        kept: the types of what it returns behind its rows; None: as it is.
    """

    def decorate(compute: Arithmetic) -> Arithmetic:
        name = compute.__name__.strip("_")

        def stored(rest: Rows) -> list[torch.Tensor]:
            return [each if dtype is None else each.to(dtype) for each, dtype in zip(rest, kept, strict=True)]

        def stacked(*args: Any) -> Any:
            if all(type(arg) in PLAIN for arg in args):
                with numpy.errstate(all="ignore"):  # of values that are not finite
                    rows, rest = compute(*map(_array, args))
                stack = numpy.empty((len(rows), *numpy.broadcast(*rows).shape), rows[0].dtype)
                for number, row in enumerate(rows):
                    stack[number] = row
                together, *rest = map(torch.from_numpy, (stack, *map(numpy.asarray, rest)))
            else:
                rows, rest = compute(*args)
                together = torch.stack(torch.broadcast_tensors(*rows))
            return (together, *stored(rest)) if kept else together

        _LIBRARY.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * (1 + len(kept)))})")
        _LIBRARY.impl(name, stacked, "CompositeExplicitAutograd")

        @functools.wraps(compute)
        def called(*args: Any) -> tuple[Rows, Rows]:
            if any(arg.device.type != "cpu" for arg in args if isinstance(arg, torch.Tensor)):
                rows, rest = compute(*args)
                return [materialize(row) for row in rows], stored(rest)
            found = getattr(torch.ops.fxapprox, name).default(*args)
            together, *rest = found if kept else (found,)
            return [together[row] for row in range(together.shape[0])], rest

        return called

    return decorate


PLAIN = {torch.Tensor, torch.nn.Parameter, int, float, type(None)}  # what needs no tracing; a fake tensor has no memory


def _array(x: Any) -> Any:
    """A tensor as a numpy array; anything else as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    return (x.float() if x.dtype is torch.bfloat16 else x).detach().numpy()  # numpy has no bfloat16
