"""NaN and infinity arrive where plain torch.compile has them, and GradScaler sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.training_loops.beside import (
    LOWERINGS,
    Between,
    Compile,
    Seen,
    check,
    conv_net,
    gradients,
    mlp,
    run,
    slow,
    step,
)

BATCH = 64
ODD = [math.nan, math.inf, -math.inf]


def hardly(h: Tensor) -> Tensor:
    return F.hardsigmoid(h) * h


def times_a_comparison(h: Tensor) -> Tensor:
    return h * (h > 0)


def rectified_without_mask(h: Tensor) -> Tensor:
    return F.relu(h.detach()) * h.sin()


def softmax(h: Tensor) -> Tensor:
    return F.softmax(h, -1)


def layer_norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, (64,))


def clamp(h: Tensor) -> Tensor:
    return h.clamp(-1, 1)


def clamp_min(h: Tensor) -> Tensor:
    return h.clamp_min(0) * h


MIDDLES: list[Any] = [
    F.relu, F.hardswish, softmax,
    *slow(F.gelu, F.silu, F.leaky_relu, F.relu6, F.hardsigmoid, F.elu, F.softplus, torch.abs, torch.tanh, clamp),
    *slow(torch.sigmoid, torch.square, hardly, times_a_comparison, rectified_without_mask, layer_norm, clamp_min),
]  # fmt: skip


# their values are stored in a threshold code, in which a NaN or infinity takes its channel with it
SPREAD = (hardly, rectified_without_mask, clamp_min, F.hardswish)


def poisoned(middle: Callable[[Tensor], Tensor]) -> Callable[[Compile], Seen]:
    """A step with odd values among the hidden ones; the loss's own derivative does not spread them."""

    def loop(compile: Compile) -> Seen:
        first, second = torch.nn.Linear(32, 64), torch.nn.Linear(64, 8)

        def forward(x: Tensor, poison: Tensor) -> Tensor:
            return second(middle(first(x) + poison))

        x, poison = torch.randn(BATCH, 32, requires_grad=True), torch.zeros(BATCH, 64)
        for i, odd in enumerate(ODD):
            poison[3 * i, 5 + i] = odd
        out = compile(forward)(x, poison)
        out.sum().backward()
        return Seen([out.detach()], gradients(first, second, x))

    return loop


@pytest.mark.parametrize("middle", MIDDLES, ids=lambda f: f.__name__)
def test_odd_values_arrive(middle: Callable[[Tensor], Tensor]) -> None:
    """What is NaN or infinite under plain torch.compile is so in 8 and 4 bits; as a rule, nothing else becomes so."""
    plain, _ = run(poisoned(middle), None)
    for bits in (None, 8, 4):
        found, _ = run(poisoned(middle), {"bits": bits})
        for mine, theirs in zip([*found.exact, *found.close], [*plain.exact, *plain.close], strict=True):
            assert mine is not None
            assert theirs is not None
            assert not (mine.isfinite() & ~theirs.isfinite()).any(), bits
            assert (bits and middle in SPREAD) or torch.equal(mine.isfinite(), theirs.isfinite()), bits


@pytest.mark.parametrize("odd", [math.nan, *slow(math.inf, -math.inf)])
def test_odd_values_in_images(odd: float) -> None:
    def loop(compile: Compile) -> Seen:
        model, x = conv_net(), torch.randn(8, 3, 8, 8)
        x[2, 1, 4, 4] = odd
        return step(model, compile(model), x)

    check(loop)


@pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed")  # Inductor, of codes' scales beside float16
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_grad_scaler_skips_a_step_that_overflows(lowering: str) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        compiled, optimizer = compile(model), torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        before = [p.detach().clone() for p in model.parameters()]
        with torch.autocast("cpu", torch.float16):
            loss = compiled(torch.randn(BATCH, 32)).float().square().sum() * 100
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        for now, then in zip(model.parameters(), before, strict=True):
            assert torch.equal(now, then)
        return Seen([loss.detach(), torch.tensor(scaler.get_scale())], [])

    check(loop, lowering=lowering)


def test_a_loss_that_is_nan() -> None:
    def loop(compile: Compile) -> Seen:
        model, x = mlp(), torch.randn(BATCH, 32)
        x[0, 0] = math.nan
        loss = F.cross_entropy(compile(model)(x), torch.zeros(BATCH, dtype=torch.long))
        loss.backward()
        return Seen([loss.detach()], gradients(model))

    check(loop)


def test_masked_nan_stays_out_of_gradients() -> None:
    """where() keeps NaN from the loss; the gradients are finite, as far as plain torch.compile's are."""

    def loop(compile: Compile) -> Seen:
        def middle(h: Tensor) -> Tensor:
            return torch.where(h > 0, h.sqrt(), torch.zeros_like(h)).sin()

        model = Between(middle)
        return step(model, compile(model), torch.randn(BATCH, 32))

    check(loop)


def test_sums_over_rows_of_minus_infinity() -> None:
    """Attention masks: rows of -inf scores."""

    def loop(compile: Compile) -> Seen:
        mask = torch.full((64, 64), -math.inf).triu(1)
        mask[7] = -math.inf

        def middle(h: Tensor) -> Tensor:
            return F.softmax(h @ h.T / 8 + mask, -1) @ h

        model = Between(middle)
        return step(model, compile(model), torch.randn(BATCH, 32))

    check(loop)
