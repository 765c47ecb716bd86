"""What the adapter adds to torch: operators for small arithmetic, and work that Inductor is spared."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.loop_body import LoopBody
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.utils import fresh_cache

import fxapprox
from fxapprox import torch_adapter as adapter


@adapter.small("Tensor x, Tensor? y, int times", kept=(torch.uint8,))
def _multiples_for_a_test(x: Any, y: Any, times: int) -> tuple[Sequence[Any], Sequence[Any]]:
    return (x * times, x if y is None else y), (x > 0,)


def test_small_arithmetic_is_one_operator_on_the_cpu() -> None:
    x, y = torch.randn(1, 5, 1), torch.randn(())
    (tripled, other), (positive,) = _multiples_for_a_test(x, y, 3)
    assert torch.equal(tripled, x * 3)
    assert torch.equal(other, y.expand_as(x))
    assert torch.equal(positive, (x > 0).to(torch.uint8))

    def summed(x: Tensor) -> tuple[Tensor]:
        (tripled, other), (positive,) = _multiples_for_a_test(x, None, 3)
        return (tripled + other + positive,)

    with adapter.fake_mode() as mode:
        traced = adapter.trace(summed, [mode.from_tensor(x)], mode)
    assert [str(node.target) for node in traced.graph.nodes if "fxapprox" in str(node.target)] == [
        "fxapprox.multiples_for_a_test.default"
    ]
    assert torch.equal(traced(x)[0], summed(x)[0])


def test_small_arithmetic_is_spelled_out_elsewhere() -> None:
    with adapter.fake_mode() as mode:
        x = torch.empty(1, 5, 1, device="meta")
        traced = adapter.trace(lambda x: tuple(_multiples_for_a_test(x, None, 3)[0]), [mode.from_tensor(x)], mode)
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert "aten.mul.Tensor" in targets
    assert not any("fxapprox" in target for target in targets)


def layers() -> tuple[nn.Module, Tensor]:
    """On images whose rows are no whole vectors."""
    torch.manual_seed(0)
    found = (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.GELU())
    return nn.Sequential(*found), torch.randn(8, 16, 7, 7)


@pytest.mark.inductor
def test_what_inductor_is_spared_leaves_no_trace(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same loss and gradients, bit for bit; loops are gone through less often, and fewer files compiled."""
    runs = 0
    body = LoopBody.__call__

    def counted(self: LoopBody, *indices: object) -> object:
        nonlocal runs
        runs += 1
        return body(self, *indices)

    monkeypatch.setattr(LoopBody, "__call__", counted)
    found = []
    for spared in (True, False):
        if not spared:
            monkeypatch.setattr(adapter, "_quick_inductor", lambda half: contextlib.nullcontext())
        model, x = layers()
        runs = 0
        with fresh_cache():
            loss = fxapprox.compile(model, bits=4, min_bytes=0, dynamic=False)(x).square().mean()
            loss.backward()
            files = libraries()
        found.append((loss.detach(), [p.grad for p in model.parameters()], (runs, files)))
    (loss, gradients, fewer), (expected, others, more) = found
    assert torch.equal(loss, expected)
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.equal(gradient, other)
    assert all(few < many for few, many in zip(fewer, more, strict=True))


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


def run_on_ones(kernels: adapter._CppKernels, number: int) -> float:
    out = torch.empty(8)
    kernels.function(number)(torch.ones(8), out)
    (found,) = set(out.tolist())
    return found


@pytest.mark.inductor
def test_kernels_share_files() -> None:
    factors = ["2.0f", "3.0f", "5.0f", "7.0f", "9.0f"]
    with fresh_cache():
        kernels = adapter._CppKernels(AsyncCompile.submit, threads=2)
        numbers = [kernels.add(*scaled(factor)) for factor in factors]
        assert [run_on_ones(kernels, number) for number in numbers] == [2.0, 3.0, 5.0, 7.0, 9.0]
        assert libraries() == 2


@pytest.mark.inductor
def test_a_kernel_that_cannot_be_compiled_leaves_the_others_alone() -> None:
    with fresh_cache():
        kernels = adapter._CppKernels(AsyncCompile.submit, threads=1)
        good, bad, last = (kernels.add(*scaled(factor)) for factor in ("2.0f", "no_such_name", "3.0f"))
        assert run_on_ones(kernels, good) == 2.0
        with pytest.raises(RuntimeError, match="no_such_name"):
            kernels.function(bad)
        assert run_on_ones(kernels, last) == 3.0


def test_templates_get_a_file_of_their_own() -> None:
    argtypes, code = scaled("2.0f")
    kernels = adapter._CppKernels(AsyncCompile.submit, threads=1)
    for source in (code, "#define SIZE 4\n" + code, code, code + "static void helper() {}\n", code):
        kernels.add(argtypes, source)
    assert sorted(map(sorted, kernels._batches())) == [[0, 2, 3, 4], [1]]


def test_files_are_of_like_length_and_no_larger_than_a_compiler_can_take() -> None:
    kernels = adapter._CppKernels(AsyncCompile.submit, threads=2)
    argtypes, code = scaled("2.0f")
    for lines in range(3 * adapter.LARGEST_FILE):
        kernels.add(argtypes, code + "\n" * 100 * lines)
    batches = kernels._batches()
    assert sorted(number for batch in batches for number in batch) == list(range(3 * adapter.LARGEST_FILE))
    lengths = [sum(len(kernels._kernels[number][1]) for number in batch) for batch in batches]
    assert len(batches) == 3
    assert max(lengths) < 1.1 * min(lengths)
