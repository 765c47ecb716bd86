"""Arithmetic on few numbers: one operator on the CPU, spelled out elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxapprox import torch_adapter as adapter


@adapter.small("Tensor x, Tensor? y, int times", rows=2, kept=(torch.uint8,))
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
