"""C++ kernels that share files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.utils import fresh_cache

import fxapprox
from fxapprox.torch_adapter.speedups import cpp_files
from fxapprox.torch_adapter.speedups.cpp_files import FULL, CppKernels
from tests.torch_adapter.test_speedups import layers


def libraries() -> int:
    """How many files of kernels are in Inductor's cache."""
    return len(list(Path(cache_dir()).rglob("*.main.so")))


def scaled(factor: str) -> tuple[Sequence[str], str]:
    """A kernel as Inductor writes it: the types of its arguments and its code, the name the same in all of them."""
    code = f"""
        #include <torch/csrc/inductor/cpp_prefix.h>
        extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0)
        {{
            #pragma GCC ivdep
            for(int64_t x0=0; x0<8; x0+=1) out_ptr0[x0] = in_ptr0[x0] * {factor};
        }}
    """
    return ("const float*", "float*"), code


def run_on_ones(kernels: CppKernels, number: int) -> float:
    out = torch.empty(8)
    kernels.function(number)(torch.ones(8), out)
    (found,) = set(out.tolist())
    return found


def long(factor: str) -> tuple[Sequence[str], str]:
    """A kernel that fills half of a file."""
    argtypes, code = scaled(factor)
    return argtypes, code + "\n" * (FULL // 2)


@pytest.mark.inductor
def test_kernels_share_files() -> None:
    factors = ["2.0f", "3.0f", "5.0f", "7.0f", "9.0f"]
    with fresh_cache():
        kernels = CppKernels(AsyncCompile.submit)
        numbers = [kernels.add(*long(factor)) for factor in factors]
        assert [run_on_ones(kernels, number) for number in numbers] == [2.0, 3.0, 5.0, 7.0, 9.0]
        assert libraries() == 3


@pytest.mark.inductor
def test_a_full_file_goes_to_the_compiler_at_once() -> None:
    begun = 0

    def submit(task: Callable[[], Any]) -> Any:
        nonlocal begun
        begun += 1
        return AsyncCompile.submit(task)

    with fresh_cache():
        kernels = CppKernels(submit)
        counts = []
        for factor in ("2.0f", "3.0f", "5.0f"):
            kernels.add(*long(factor))
            counts.append(begun)
        assert counts == [0, 1, 1]
        assert kernels.add(*long("3.0f")) == 1  # known by now
        assert run_on_ones(kernels, 2) == 5.0


@pytest.mark.inductor
def test_the_last_file_does_not_wait_for_the_first() -> None:
    begun: list[Callable[[], Any]] = []

    class Later:
        """What is compiled when somebody waits for it."""

        def __init__(self, task: Callable[[], Any]) -> None:
            begun.append(task)
            self.task = task

        def result(self) -> Any:
            assert len(begun) == 2, "waits for a file while another one has not been begun with"
            return self.task()

    with fresh_cache():
        kernels = CppKernels(Later)
        numbers = [kernels.add(*long(factor)) for factor in ("2.0f", "3.0f")] + [kernels.add(*scaled("5.0f"))]
        assert len(begun) == 1
        assert run_on_ones(kernels, numbers[0]) == 2.0
        assert run_on_ones(kernels, numbers[2]) == 5.0


@pytest.mark.inductor
def test_a_kernel_that_cannot_be_compiled_leaves_the_others_alone() -> None:
    with fresh_cache():
        kernels = CppKernels(AsyncCompile.submit)
        good, bad, last = (kernels.add(*scaled(factor)) for factor in ("2.0f", "no_such_name", "3.0f"))
        assert run_on_ones(kernels, good) == 2.0
        with pytest.raises(RuntimeError, match="no_such_name"):
            kernels.function(bad)
        assert run_on_ones(kernels, last) == 3.0


@pytest.mark.inductor
def test_templates_get_a_file_of_their_own() -> None:
    argtypes, code = scaled("2.0f")
    with fresh_cache():
        kernels = CppKernels(AsyncCompile.submit)
        for source in (code, "#define SIZE 4\n" + code, code + "//", code + "static void helper() {}\n", code + "///"):
            kernels.add(argtypes, source)
        assert [run_on_ones(kernels, number) for number in range(5)] == [2.0] * 5
        assert libraries() == 2


@pytest.mark.inductor
def test_a_graph_asks_for_what_the_compiler_has_begun_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for no other code, nor in another order; a later process finds the same files."""
    monkeypatch.setattr(cpp_files, "FULL", 4000)
    made: list[CppKernels] = []
    monkeypatch.setattr(cpp_files, "CppKernels", lambda submit: made.append(CppKernels(submit)) or made[-1])
    seen = []
    with fresh_cache():
        for _ in range(2):
            made.clear()
            torch._dynamo.reset()
            model, x = layers()
            fxapprox.compile(model, bits=4, min_bytes=0, dynamic=False)(x).square().mean().backward()
            seen.append(([list(kernels._kernels) for kernels in made], libraries()))
    (first, files), (second, later) = seen
    assert first == second
    assert len(first) == 2
    assert files == later > 2
