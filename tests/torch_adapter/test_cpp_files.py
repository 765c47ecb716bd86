"""C++ kernels that share files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.utils import fresh_cache

from fxapprox.torch_adapter.cpp_files import LARGEST_FILE, CppKernels


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


@pytest.mark.inductor
def test_kernels_share_files() -> None:
    factors = ["2.0f", "3.0f", "5.0f", "7.0f", "9.0f"]
    with fresh_cache():
        kernels = CppKernels(AsyncCompile.submit, threads=2)
        numbers = [kernels.add(*scaled(factor)) for factor in factors]
        assert [run_on_ones(kernels, number) for number in numbers] == [2.0, 3.0, 5.0, 7.0, 9.0]
        assert libraries() == 2


@pytest.mark.inductor
def test_a_kernel_that_cannot_be_compiled_leaves_the_others_alone() -> None:
    with fresh_cache():
        kernels = CppKernels(AsyncCompile.submit, threads=1)
        good, bad, last = (kernels.add(*scaled(factor)) for factor in ("2.0f", "no_such_name", "3.0f"))
        assert run_on_ones(kernels, good) == 2.0
        with pytest.raises(RuntimeError, match="no_such_name"):
            kernels.function(bad)
        assert run_on_ones(kernels, last) == 3.0


def test_templates_get_a_file_of_their_own() -> None:
    argtypes, code = scaled("2.0f")
    kernels = CppKernels(AsyncCompile.submit, threads=1)
    for source in (code, "#define SIZE 4\n" + code, code, code + "static void helper() {}\n", code):
        kernels.add(argtypes, source)
    assert sorted(map(sorted, kernels._batches())) == [[0, 2, 3, 4], [1]]


def test_files_are_of_like_length_and_no_larger_than_a_compiler_can_take() -> None:
    kernels = CppKernels(AsyncCompile.submit, threads=2)
    argtypes, code = scaled("2.0f")
    for lines in range(3 * LARGEST_FILE):
        kernels.add(argtypes, code + "\n" * 100 * lines)
    batches = kernels._batches()
    assert sorted(number for batch in batches for number in batch) == list(range(3 * LARGEST_FILE))
    lengths = [sum(len(kernels._kernels[number][1]) for number in batch) for batch in batches]
    assert len(batches) == 3
    assert max(lengths) < 1.1 * min(lengths)
