"""Clamps of approximate values: backward takes forward's side of both limits, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.codecs import Identity
from tools.zoo.training import gradients, relative, unrewritten

EDGES = torch.tensor([-4.0, -3.0, -2.0, 0.0, 2.0, 3.0, 4.0, 1e-30, 64.0])


class Edges(nn.Module):
    """Rows that hit the limits of an activation, and the neighbouring floats, between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Parameter(torch.eye(33, dtype=dtype))
        self.second = nn.Parameter(torch.randn(33, 5).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.first
        return (y * self.function(y)) @ self.second


def edges(dtype: torch.dtype) -> Tensor:
    exact = EDGES.to(dtype)
    below, above = (torch.nextafter(exact, torch.full_like(exact, end)) for end in (-math.inf, math.inf))
    row = torch.cat([exact, below, above, torch.linspace(-5, 5, 6).to(dtype)])
    return row * torch.ones(8, 1, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("function", [F.hardswish, F.hardsigmoid, F.relu6, F.hardtanh])
def test_identity_codec_changes_no_bit(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    model, x = Edges(function, dtype), edges(dtype)
    found = []
    for run in (
        unrewritten(model),
        fxapprox.compile(model, lowering="eager", policy=lambda _: Identity(), min_bytes=0, strict=True),
    ):
        torch._dynamo.reset()
        model.zero_grad()
        run(x).square().mean().backward()
        found.append(gradients(model))
    assert torch.equal(*found)


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.ReLU6])
@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (4, 0.2)])
def test_conv_norm_clamp_is_one_code_and_one_mask(bits: int, limit: float, activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), activation(), nn.Conv2d(16, 8, 3), nn.Flatten()]
    model, x = nn.Sequential(*layers), torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        model[1].weight.fill_(2)  # type: ignore[union-attr,operator]
    found = []
    for run in (unrewritten(model), fxapprox.compile(model, bits=bits, lowering="eager", strict=True)):
        torch._dynamo.reset()
        model.zero_grad()
        run(x).square().mean().backward()
        found.append(gradients(model))
    assert relative(found[1], found[0]) < limit
    report = fxapprox.explain(model, x, bits=bits)
    large = {d.storage for d in report.decisions if d.bytes_after > 1000}
    assert large == {f"{bits}-bit threshold", "1-bit mask"}
    assert report.ratio > 64 / (bits + 1) - 0.3


@pytest.mark.inductor
def test_hardswish_under_inductor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Hardswish(), nn.Linear(64, 64), nn.Hardsigmoid(), nn.Linear(64, 8))
    x = 3 * torch.randn(128, 64)
    found = []
    for run in (torch.compile(model), fxapprox.compile(model, bits=8, strict=True)):
        torch._dynamo.reset()
        model.zero_grad()
        loss = run(x).square().mean()
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert relative(found[1][1], found[0][1]) < 0.02


def test_a_decision_that_nothing_else_reads_is_stored_for_the_clamp() -> None:
    """Backward reads both limits' decisions joined, in one bit; the clamp that is run again wants one of them."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.second(F.threshold(h, 0.0, 0.0) * h + h.clamp(0, 1))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(64, 32)
    found = []
    for bits in (None, 8):
        torch._dynamo.reset()
        model.zero_grad()
        fxapprox.compile(model, bits=bits, lowering="eager", min_bytes=0, strict=True)(x).square().mean().backward()
        found.append(gradients(model))
    assert relative(found[1], found[0]) < 0.02
