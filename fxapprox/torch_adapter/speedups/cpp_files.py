# pyright: reportPrivateImportUsage=false
"""Patches ``define_kernel`` and ``cpp_pybinding``: C++ kernels a batch to a file, compiled while others are written.

Most of the compiler's time goes into what every file begins with; and Inductor, left alone, starts the compiler only
when a graph's last kernel is written.

Saves: 3 of 30 s of a ResNet-18's first step at 4 bits (docs/performance.md). Torch: all that are known.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from fxapprox.torch_adapter.joint import Half

FULL = 200_000  # characters in a file; what comes before them takes the compiler as long as 70,000 more


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """Where a kernel is written, and where the module that is made asks for it."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    kernels = CppKernels(AsyncCompile.submit)
    define = when_written(kernels, PythonWrapperCodegen.define_kernel)
    yield patch.object(PythonWrapperCodegen, "define_kernel", define)
    yield patch.object(AsyncCompile, "cpp_pybinding", asked_for(kernels, AsyncCompile.cpp_pybinding))


class CppKernels:
    """The kernels of a graph, several to a file, which goes to the compiler as soon as it is full.

    What shares a file depends on the kernels and their order alone, so that a later process finds the same files.

    Args:
        submit: runs a function in one of the compiler threads; returns its future.
    """

    def __init__(self, submit: Callable[..., Any]) -> None:
        self._submit = submit
        self._kernels: dict[tuple[tuple[str, ...], str], int] = {}  # C++ types of arguments and code, its number
        self._open: list[int] = []  # numbers of those in the file that is not full yet
        self._length = 0  # of that file
        self._functions: dict[int, Callable[[], Any]] = {}  # what waits for a kernel

    def add(self, argtypes: Sequence[str], source: str) -> int:
        """The number of a kernel, C++ types of its arguments and its code; one that is known is not added again."""
        kernel = tuple(argtypes), source
        if kernel in self._kernels:
            return self._kernels[kernel]
        self._kernels[kernel] = number = len(self._kernels)
        if not _is_plain(source):  # a template's macros and headers could get into the way of others
            self._compile([number])
            return number
        self._open.append(number)
        self._length += len(source)
        if self._length >= FULL:
            self._close()
        return number

    def function(self, number: int) -> Callable[..., None]:
        """A kernel, as what Python calls; waits for the compiler, which first gets what is left."""
        if self._open:
            self._close()
        return self._functions[number]()

    def _close(self) -> None:
        self._compile(self._open)
        self._open, self._length = [], 0

    def _compile(self, numbers: Sequence[int]) -> None:
        """Starts the compiler on one file."""
        from torch._inductor.codecache import CppPythonBindingsCodeCache as Cache

        kernels = list(self._kernels)
        alone = [functools.partial(Cache.load_pybinding_async, *kernels[n], submit_fn=self._submit) for n in numbers]
        if len(numbers) == 1:
            self._functions[numbers[0]] = alone[0]()
            return
        library = _library([kernels[number] for number in numbers], self._submit)
        for place, number in enumerate(numbers):
            self._functions[number] = functools.partial(_function, library, place, alone[place])


def asked_for(kernels: CppKernels, compile_alone: Callable[..., Any]) -> Callable[..., Any]:
    """What a generated module asks for each of its kernels with: a future of it."""
    from torch._inductor.async_compile import get_compile_threads, kernel_code_log
    from torch._inductor.codecache import LambdaFuture

    def requested(self: Any, argtypes: Sequence[str], source: str) -> Any:
        if get_compile_threads() <= 1:  # nobody waits for anything then
            return compile_alone(self, argtypes, source)
        kernel_code_log.info("CPP+Bindings Kernel:\n%s", source)
        return LambdaFuture(functools.partial(kernels.function, kernels.add(argtypes, source)))

    return requested


def when_written(kernels: CppKernels, define: Callable[..., None]) -> Callable[..., None]:
    """Defines a kernel in a generated module, and has the compiler begin with what that module will ask for.

    Not those of functions: the module asks for them after all others, wherever they are called.
    """
    from torch._inductor.async_compile import get_compile_threads
    from torch._inductor.codegen.wrapper import SubgraphPythonWrapperCodegen

    def defined(self: Any, kernel_name: str, kernel_body: str, *args: Any, **kwargs: Any) -> None:
        known_now = kernel_body.startswith("async_compile.cpp_pybinding(") and get_compile_threads() > 1
        if known_now and not isinstance(self, SubgraphPythonWrapperCodegen):
            call = ast.parse(kernel_body.strip(), mode="eval").body
            assert isinstance(call, ast.Call)
            kernels.add(*map(ast.literal_eval, call.args))
        define(self, kernel_name, kernel_body, *args, **kwargs)

    return defined


KERNEL = 'extern "C"'  # what a kernel's one function begins with


def _is_plain(source: str) -> bool:
    """Whether nothing but the function is in a kernel's code, its one header aside."""
    lines = [line.strip() for line in source.splitlines()]
    directives = [line for line in lines if line.startswith("#") and not line.startswith("#pragma")]
    return source.count(KERNEL) == 1 and len(directives) == 1 and "cpp_prefix" in directives[0]


def _library(kernels: Sequence[tuple[Sequence[str], str]], submit: Callable[..., Any]) -> Callable[[], Any]:
    """Starts to compile kernels as one file, each in a namespace; returns what waits for the extension module."""
    heads: dict[str, None] = {}
    spaces = []
    for place, (argtypes, source) in enumerate(kernels):
        binding = _binding(place)
        given = ", ".join(f"parse_arg<{kind.replace('const ', '')}>(args, {n})" for n, kind in enumerate(argtypes))
        code = source.replace(KERNEL, "static") + binding.suffix_template.format(
            arg_len=len(argtypes), call_entry_func=binding.call_entry_function.format(given),
            entry_func=binding.entry_function, extra_parse_arg="",
        )  # fmt: skip
        lines = [line.strip() for line in code.splitlines()]
        heads.update((line, None) for line in lines if line.startswith(("#include", "#define")))
        body = "\n".join(line for line in lines if line not in heads)
        spaces.append(f"namespace {binding.entry_function}_space {{\n{body}\n}}")
    return _binding(0).load_async("\n".join([*heads, *spaces]) + "\n", submit_fn=submit)


@functools.cache
def _binding(place: int) -> Any:
    """Inductor's own binding of a C++ function to Python, under a name of its own in the file."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    return type("Binding", (CppPythonBindingsCodeCache,), {"entry_function": f"kernel_{place}"})


def _function(library: Callable[[], Any], place: int, alone: Callable[[], Callable[[], Any]]) -> Any:
    """A kernel of a library; compiled alone if the library cannot be, so that an error is about one kernel."""
    try:
        loaded, binding = library(), _binding(place)
    except Exception:  # whatever the C++ compiler or the loader raise
        return alone()()
    module = binding._load_library_inner(loaded.__file__, loaded.key)
    return getattr(module, binding.entry_function)
