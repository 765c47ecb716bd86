# pyright: reportPrivateImportUsage=false
"""How Inductor writes code for graphs with codes: without work that it throws away, and with whole-byte loads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.config as inductor_config
from torch import fx
from torch._inductor.virtualized import V

from fxapprox.torch_adapter.custom_ops import codes_of
from fxapprox.torch_adapter.joint import Half
from fxapprox.torch_adapter.speedups.cpp_files import CppKernels, asked_for, when_written
from fxapprox.torch_adapter.speedups.indexing import join_dimensions, stride_at_vec_range
from fxapprox.torch_adapter.speedups.inlined import binding
from fxapprox.torch_adapter.tracing import is_function_of_ours, is_part


@contextlib.contextmanager
def quick_inductor(half: Half) -> Iterator[None]:
    """Spares Inductor work whose results it throws away.

    - Its table of dtype rules is one object, which fills itself in anew for every operator of every kernel.
    - A loop over whole vectors gets code for its empty tail, which is then left out.
    - An expression that is read at two places of another one is traced twice, what it reads four times, and so on; the
      printer then drops the copies. Not in forward: how Inductor splits a loop depends on how many operators it counts,
      and forward's own loops are to be those of plain torch.compile.
    - What it asks about indices goes to sympy's general means, tens of milliseconds each time.
    - Every kernel is a C++ file of its own, and most of the time that takes goes into headers and the linker; none is
      compiled before the last one is written.
    - Its passes over a graph visit each of our functions, which hold nothing that they look for.
    - What it knows of a value it compares with what it knew before, and takes the same for another: in torch 2.13 all
      that follows from the result of a call of a function is then worked out again, four times a step.

    And the processor: eight bytes of a code are loaded as such, and no more than eight at a time.
    """
    from torch._inductor import compile_fx, fx_utils, sizevars
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codegen import cpp
    from torch._inductor.codegen.cpp import CppKernelProxy, CppVecKernel
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
    from torch._inductor.ir import Pointwise

    DtypePropagationOpsHandler()
    kernels = CppKernels(AsyncCompile.submit)
    with (
        patch.object(DtypePropagationOpsHandler, "__init__", lambda self: None),
        patch.object(PythonWrapperCodegen, "define_kernel", when_written(kernels, PythonWrapperCodegen.define_kernel)),
        patch.object(AsyncCompile, "cpp_pybinding", asked_for(kernels, AsyncCompile.cpp_pybinding)),
        patch.object(fx_utils, "_is_fake_tensor_same", _same_if_identical(fx_utils._is_fake_tensor_same))
        if hasattr(fx_utils, "_is_fake_tensor_same") else contextlib.nullcontext(),
        patch.object(compile_fx, "post_grad_passes", _of_others(compile_fx.post_grad_passes)),
        patch.object(cpp, "get_loop_body_lowp_fp", _not_for_radii(cpp.get_loop_body_lowp_fp)),
        patch.object(cpp, "stride_at_vec_range", stride_at_vec_range),
        patch.object(sizevars, "join_dimensions", join_dimensions),
        patch.object(CppVecKernel, "_get_vec_load_line", _codes_at_once(CppVecKernel._get_vec_load_line)),
        patch.object(CppKernelProxy, "codegen_functions", _without_empty_tails(CppKernelProxy.codegen_functions)),
        patch.object(Pointwise, "make_loader", _traced_once(Pointwise.make_loader))
        if half == "backward" else contextlib.nullcontext(),
    ):  # fmt: skip
        yield


def _same_if_identical(compare: Callable[..., bool]) -> Callable[..., bool]:
    """Compares two values, of which none differs from itself."""

    def same(new: Any, old: Any, *args: Any, **kwargs: Any) -> bool:
        return new is old or compare(new, old, *args, **kwargs)

    return same


def _of_others(passes: Callable[..., None]) -> Callable[..., None]:
    """Passes over graphs; our own functions hold nothing that they look for."""

    def run(gm: fx.GraphModule, *args: Any) -> None:
        if not is_function_of_ours(gm):
            passes(gm, *args)

    return run


def _traced_once(make_loader: Callable[[Any], Callable[..., Any]]) -> Callable[[Any], Callable[..., Any]]:
    """A pointwise value's function, which gives what it gave before, as long as the same trace goes on."""
    from torch._inductor.virtualized import NullKernelHandler

    def made(self: Any) -> Callable[..., Any]:
        if (known := vars(self).get("_fxapprox_loader")) is not None:
            return known
        load, traced, handler = make_loader(self), {}, None

        def loader(index: Sequence[Any]) -> Any:
            nonlocal traced, handler
            if not isinstance(V.kernel, NullKernelHandler):
                return load(index)  # code is being written: a name may be out of scope by now
            if handler is not V.get_ops_handler():
                traced, handler = {}, V.get_ops_handler()
            key = binding(), *index
            if key not in traced:
                traced[key] = load(index)
            return traced[key]

        object.__setattr__(self, "_fxapprox_loader", loader)
        return loader

    return made


def _codes_at_once(load_line: Callable[..., str]) -> Callable[..., str]:
    """Writes the load of a few bytes of a code, with AVX2 a quarter of a vector, as one instruction.

    ``loadu`` with a count puts them into a vector of ones in memory first, which takes longer than all of the decoder's
    arithmetic. The ones keep a division from failing; nothing is divided by a code.
    """
    from torch._inductor.cpu_vec_isa import VecAVX2, pick_vec_isa

    def line(self: Any, var: str, index: Any, dtype: torch.dtype, load_mask: Any = None) -> str:
        written = load_line(self, var, index, dtype, load_mask)
        whole = self.tail_size is None and self.num_elems == 8 and isinstance(pick_vec_isa(), VecAVX2)
        names = [name for name, argument in self.args.input_buffers.items() if argument == var]
        coded = any(is_part(name) or name in codes_of(V.graph) for name in names)
        if dtype != torch.uint8 or load_mask is not None or not whole or not coded:
            return written
        return re.sub(r"::loadu\((.*), [^,]*\)$", r"::loadu_one_fourth(\1)", written)

    return line


def _not_for_radii(low_precision: Callable[..., Any]) -> Callable[..., Any]:
    """Tells loops how many bits their floats have: 32, if a code's bfloat16 scale is all that has 16.

    As many elements as a vector holds of 16 bits would be taken at a time, and for that many AVX2 has no conversion
    from bytes.
    """
    from torch._inductor.codegen.cpp import DTYPE_LOWP_FP

    def found(body: Any) -> tuple[torch.dtype | None, bool]:
        blocks = (body.root_block, *body.subblocks.values())
        loaded = {node.args[1] for block in blocks for node in block.graph.nodes if node.target == "load"}
        parts = {name for name in loaded if is_part(name)}
        narrow = {name for name in loaded if V.graph.get_dtype(name) in DTYPE_LOWP_FP}
        return (None, True) if parts and narrow <= parts else low_precision(body)

    return found


def _without_empty_tails(codegen: Callable[..., None]) -> Callable[..., None]:
    """Writes the code of some loops; that for their tails only if there are any.

    Reductions are left alone: they choose their accumulators by what kind of tail they have.
    """
    from torch._inductor.codegen.cpp import LoopNest

    def written(self: Any, functions: Any, sizes: Sequence[tuple[Any, Any]]) -> None:
        wanted, tile = inductor_config.cpp.enable_loop_tail_vec, LoopNest.tile
        if not wanted or any(reduced for _, reduced in sizes):
            return codegen(self, functions, sizes)

        def tiled(self: Any, depth: int, factor: int) -> Any:
            loop = tile(self, depth, factor)
            tails = any(each.size != each.tiled_size for each in self.loops if each.steps != 1)
            inductor_config.cpp.enable_loop_tail_vec = tails
            return loop

        with (
            inductor_config.patch({"cpp.enable_loop_tail_vec": wanted}),  # and back to that afterwards
            patch.object(LoopNest, "tile", tiled),
        ):
            return codegen(self, functions, sizes)

    return written
