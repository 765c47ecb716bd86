"""What the adapter adds to torch: operators for small arithmetic, and work that Inductor is spared."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.loop_body import LoopBody
from torch._inductor.utils import fresh_cache

import fxapprox
from fxapprox import torch_adapter as adapter


@adapter.small("Tensor x, Tensor? y, int power", kept=1)
def _powers_for_a_test(x: Tensor, y: Tensor | None, power: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return (x**power, x if y is None else y), ((x > 0).to(torch.uint8),)


def test_small_arithmetic_is_one_operator_on_the_cpu() -> None:
    x, y = torch.randn(1, 5, 1), torch.randn(())
    (cubes, other), (positive,) = _powers_for_a_test(x, y, 3)
    assert torch.equal(cubes, x**3)
    assert torch.equal(other, y.expand_as(x))
    assert torch.equal(positive, (x > 0).to(torch.uint8))

    def summed(x: Tensor) -> tuple[Tensor]:
        (cubes, other), (positive,) = _powers_for_a_test(x, None, 3)
        return (cubes + other + positive,)

    with adapter.fake_mode() as mode:
        traced = adapter.trace(summed, [mode.from_tensor(x)], mode)
    assert [str(node.target) for node in traced.graph.nodes if "fxapprox" in str(node.target)] == [
        "fxapprox.powers_for_a_test.default"
    ]
    assert torch.equal(traced(x)[0], summed(x)[0])


def test_small_arithmetic_is_spelled_out_elsewhere() -> None:
    with adapter.fake_mode() as mode:
        x = torch.empty(1, 5, 1, device="meta")
        traced = adapter.trace(lambda x: tuple(_powers_for_a_test(x, None, 3)[0]), [mode.from_tensor(x)], mode)
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert "aten.pow.Tensor_Scalar" in targets
    assert not any("fxapprox" in target for target in targets)


def layers() -> tuple[nn.Module, Tensor]:
    """On images whose rows are no whole vectors."""
    torch.manual_seed(0)
    found = (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.GELU())
    return nn.Sequential(*found), torch.randn(8, 16, 7, 7)


@pytest.mark.inductor
def test_what_inductor_is_spared_leaves_no_trace(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same loss and gradients, bit for bit, and loops are gone through less often."""
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
        found.append((loss.detach(), [p.grad for p in model.parameters()], runs))
    (loss, gradients, fewer), (expected, others, more) = found
    assert torch.equal(loss, expected)
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.equal(gradient, other)
    assert fewer < more
