# pyright: reportPrivateImportUsage=false
"""Operators of ours: words to Inductor about a value, and arithmetic on few numbers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor.inductor_prims
from torch import fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized
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
_LIBRARY.define("after(Tensor(a) x, Tensor other) -> Tensor(a)")
_LIBRARY.impl("after", lambda x, other: x, "CompositeExplicitAutograd")
# The operand, in a function that is not to run before the other value is there.
AFTER = torch.ops.fxapprox.after.default
# Adds a product of matrices to a sum in place, in the sum's type.
_LIBRARY.define("add_product(Tensor(a!) total, Tensor left, Tensor right) -> ()")
ADD_PRODUCT = torch.ops.fxapprox.add_product.default


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


_LIBRARY.impl("add_product", _add_product, "CompositeExplicitAutograd")
# Writes a part of a value in place, from a step of a dimension on.
_LIBRARY.define("put_part(Tensor(a!) total, Tensor part, int dim, int start) -> ()")
PUT_PART = torch.ops.fxapprox.put_part.default


def _put_part(total: torch.Tensor, part: torch.Tensor, dim: int, start: int) -> None:
    total.narrow(dim, start, part.shape[dim]).copy_(part)


_LIBRARY.impl("put_part", _put_part, "CompositeExplicitAutograd")
# Adds rows to the rows of a value that an index names, in place.
_LIBRARY.define("add_rows(Tensor(a!) total, Tensor index, Tensor rows) -> ()")
ADD_ROWS = torch.ops.fxapprox.add_rows.default


def _add_rows(total: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    places = torch.where(index < 0, index + total.shape[0], index).flatten()
    total.index_add_(0, places, rows.reshape(-1, *total.shape[1:]))


_LIBRARY.impl("add_rows", _add_rows, "CompositeExplicitAutograd")


def with_product_added(total: fx.Node, left: fx.Node, right: fx.Node) -> fx.Node:
    """A sum with a product of two matrices added to it, behind ``right`` in the graph; the sum given is not read again.

    Inductor adds it in place; run as it is, the graph copies the sum.
    """
    return _written(ADD_PRODUCT, total, left=left, right=right)


def with_part_put(total: fx.Node, part: fx.Node, dim: int, start: int) -> fx.Node:
    """A value with a part of it replaced, behind ``part`` in the graph; the value given is not read again.

    Inductor writes it in place; run as it is, the graph copies the value.
    """
    return _written(PUT_PART, total, part=part, dim=dim, start=start)


def with_rows_added(total: fx.Node, index: fx.Node, rows: fx.Node) -> fx.Node:
    """A value with rows added to those that an index names; the value given is not read again.

    Inductor adds them in place; run as it is, the graph copies the value.
    """
    return _written(ADD_ROWS, total, index=index, rows=rows)


def _written(target: Any, total: fx.Node, **rest: Any) -> fx.Node:
    call = total.graph.call_function(auto_functionalized, (target,), {"total": total, **rest})
    call.meta["val"] = None, total.meta["val"]
    found = total.graph.call_function(operator.getitem, (call, 1))
    found.meta["val"] = total.meta["val"]
    return found


def written_to(node: fx.Node) -> fx.Node | None:
    """The value that a node writes to, which is what its results lie in; None for other nodes."""
    writes = node.target is auto_functionalized and node.args[0] in (ADD_PRODUCT, PUT_PART, ADD_ROWS)
    return node.kwargs["total"] if writes else None  # type: ignore[return-value]


def _random_of_seed(
    size: Sequence[int], seed: torch.Tensor, mode: str, *, align_dtype: torch.dtype | None = None
) -> torch.Tensor:
    return getattr(torch, mode)(size, generator=_generator(seed), device=seed.device, dtype=torch.float32)


def _randint_of_seed(low: int, high: int, size: Sequence[int], seed: torch.Tensor) -> torch.Tensor:
    return torch.randint(low, high, size, generator=_generator(seed), device=seed.device)


def _generator(seed: torch.Tensor) -> torch.Generator | None:
    return None if seed.device.type == "meta" else torch.Generator(seed.device).manual_seed(int(seed.sum()))


# What Inductor's random numbers are in its kernels: a function of the seed. Run one by one they leave the seed alone.
_OF_SEED: dict[Any, tuple[str, Callable[..., torch.Tensor]]] = {
    torch.ops.prims.inductor_random.default: ("random_of_seed", _random_of_seed),
    torch.ops.prims.inductor_randint.default: ("randint_of_seed", _randint_of_seed),
}
for _target, (_name, _run) in _OF_SEED.items():
    _LIBRARY.define(str(_target._schema).replace(f"prims::{_target._schema.name.split('::')[1]}", _name))
    for _key in ("CompositeExplicitAutograd", "Meta"):
        _LIBRARY.impl(_name, _run, _key)


def seed_random_numbers(gm: fx.GraphModule) -> None:
    """Lets a graph that is run as it is make the same random numbers of a seed each time. Mutates ``gm``."""
    for target, (name, _) in _OF_SEED.items():
        for node in gm.graph.find_nodes(op="call_function", target=target):
            node.target = getattr(torch.ops.fxapprox, name).default


def lower_hints() -> None:
    """Tells Inductor what IN_MEMORY, FENCE and AFTER mean."""
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

    meanings: dict[Any, Callable[..., Any]] = {IN_MEMORY: in_memory, FENCE: fence, AFTER: lambda x, other: x}
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


Rows = Sequence[torch.Tensor]
Arithmetic = Callable[..., tuple[Rows, Rows]]
_ARITHMETIC: dict[Any, Callable[..., tuple[torch.Tensor, ...]]] = {}


def small(arguments: str, rows: int, kept: Sequence[torch.dtype | None] = ()) -> Callable[[Arithmetic], Arithmetic]:
    """Makes an operator of arithmetic on a few numbers, such as a channel's statistics, for graphs on the CPU.

    There Inductor would write it anew for each layer; as one operator it can become a function that is compiled once
    (``passes/call_arithmetic.py``). On other devices a call would be a launch or more: there the function is traced as
    it stands, and its rows are put into memory.

    The function takes tensors and numbers, and gives rows, which are broadcast together, and what is kept.

    Args:
        arguments: the schema's, "Tensor mean, int bits".
        rows: how many rows it gives.
        kept: the types of what it returns behind its rows; None: as it is.
    """

    def decorate(compute: Arithmetic) -> Arithmetic:
        name = compute.__name__.strip("_")

        def run(*args: Any) -> tuple[torch.Tensor, ...]:
            found, rest = compute(*args)
            stored = (each if dtype is None else each.to(dtype) for each, dtype in zip(rest, kept, strict=True))
            results = (*torch.broadcast_tensors(*found), *stored)
            return tuple(each.clone(memory_format=torch.contiguous_format) for each in results)  # no two share memory

        _LIBRARY.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * (rows + len(kept)))})")
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        operator = getattr(torch.ops.fxapprox, name).default
        _ARITHMETIC[operator] = run

        @functools.wraps(compute)
        def called(*args: Any) -> tuple[Rows, Rows]:
            if all(arg.device.type == "cpu" for arg in args if isinstance(arg, torch.Tensor)):
                found = operator(*args)
                return found[:rows], found[rows:]
            found = run(*args)
            return [materialize(row) for row in found[:rows]], found[rows:]

        return called

    return decorate


def arithmetic_of(target: Any) -> Callable[..., tuple[torch.Tensor, ...]] | None:
    """What an operator that ``small`` made computes, in torch's operators; None for other operators."""
    return _ARITHMETIC.get(target)
