# pyright: reportPrivateImportUsage=false
"""Inductor's C++ kernels a batch to a file: most of the compiler's time goes into what every file begins with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

LARGEST_FILE = 24  # kernels: when one changes, its whole file is compiled again


def in_few_files(compile_alone: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles the C++ kernels of a graph in as few files as there are compiler processes.

    A generated module asks for all of its kernels, then waits for each; the first wait starts the compiler.
    """
    from torch._inductor.async_compile import get_compile_threads, kernel_code_log
    from torch._inductor.codecache import LambdaFuture

    def requested(self: Any, argtypes: Sequence[str], source: str) -> Any:
        if get_compile_threads() <= 1:  # nobody waits for anything then
            return compile_alone(self, argtypes, source)
        kernel_code_log.info("CPP+Bindings Kernel:\n%s", source)
        kernels = vars(self).setdefault("_fxapprox_kernels", CppKernels(self.submit, get_compile_threads()))
        return LambdaFuture(functools.partial(kernels.function, kernels.add(argtypes, source)))

    return requested


class CppKernels:
    """Kernels that share files.

    Args:
        submit: runs a function in one of the compiler threads; returns its future.
        threads: how many of them there are.
    """

    def __init__(self, submit: Callable[..., Any], threads: int) -> None:
        self._submit, self._threads = submit, threads
        self._kernels: list[tuple[Sequence[str], str]] = []
        self._functions: list[Callable[[], Any]] = []

    def add(self, argtypes: Sequence[str], source: str) -> int:
        """One more kernel, C++ types of its arguments and its code; returns its number."""
        self._kernels.append((argtypes, source))
        return len(self._kernels) - 1

    def function(self, number: int) -> Callable[..., None]:
        """A kernel, as what Python calls; compiles all that have been added when first called."""
        if not self._functions:
            self._functions = self._start()
        return self._functions[number]()

    def _start(self) -> list[Callable[[], Any]]:
        """Starts the compiler; for each kernel the function that waits for it."""
        from torch._inductor.codecache import CppPythonBindingsCodeCache as Cache

        alone = functools.partial(Cache.load_pybinding_async, submit_fn=self._submit)
        found: dict[int, Callable[[], Any]] = {}
        for batch in self._batches():
            if len(batch) == 1:
                found[batch[0]] = alone(*self._kernels[batch[0]])
                continue
            library = _library([self._kernels[number] for number in batch], self._submit)
            for place, number in enumerate(batch):
                found[number] = functools.partial(
                    _function, library, place, functools.partial(alone, *self._kernels[number])
                )
        return [found[number] for number in range(len(self._kernels))]

    def _batches(self) -> list[list[int]]:
        """Numbers of kernels for each file: of about the same length, as few as keep all threads busy.

        Only plain loops come together; templates bring macros and headers, which could get into each other's way.
        """
        single, plain = [], []
        for number, (_, source) in enumerate(self._kernels):
            (plain if _is_plain(source) else single).append(number)
        files = max(min(self._threads, len(plain)), -(-len(plain) // LARGEST_FILE))
        batches: list[list[int]] = [[] for _ in range(files)]
        lengths = [0] * files
        for number in sorted(plain, key=lambda number: -len(self._kernels[number][1])):
            shortest = lengths.index(min(lengths))
            batches[shortest].append(number)
            lengths[shortest] += len(self._kernels[number][1])
        return [[number] for number in single] + batches


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
