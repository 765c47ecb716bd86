"""Runs a training loop with plain torch.compile, in exact mode and in 8 bits, and compares what it saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox

PLAIN = {"eager": "aot_eager_decomp_partition", "inductor": "inductor"}
LOWERINGS = ["eager", pytest.param("inductor", marks=(pytest.mark.inductor, pytest.mark.slow))]
LIMIT = 0.03  # of a gradient's norm: what 8 bits may move it by

Compile = Callable[..., Any]


def slow(*values: Any) -> list[Any]:
    """Parameters whose tests run with ``-m slow``: they try again what others try."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


class Seen(NamedTuple):
    """What a training loop leaves behind.

    Attributes:
        exact: has to be the same to the bit however activations are stored: outputs, losses, states.
        close: the same to the bit in exact mode, and near with codes: gradients, and what follows from them.
    """

    exact: Sequence[Tensor | None]
    close: Sequence[Tensor | None]


def check(
    loop: Callable[[Compile], Seen], *, lowering: str = "eager", limit: float = LIMIT, **options: Any
) -> tuple[fxapprox.Report, ...]:
    """Compares a loop, which gets what compiles, in exact mode and in 8 bits with plain torch.compile.

    Returns: the reports of the graphs in 8 bits.
    """
    plain, _ = run(loop, None, lowering)
    exact, _ = run(loop, {"bits": None, **options}, lowering)
    coded, reports = run(loop, {"bits": 8, **options}, lowering)
    rounding = 0.0 if lowering == "eager" else 1e-4  # Inductor sums in another order in other kernels
    for found in (exact, coded):
        assert_same(found.exact, plain.exact, rounding / 10)
    assert_same(exact.close, plain.close, rounding)
    for found, expected in zip(coded.close, plain.close, strict=True):
        assert_near(found, expected, limit)
    return reports


def run(
    loop: Callable[[Compile], Seen], options: dict[str, Any] | None, lowering: str = "eager"
) -> tuple[Seen, tuple[fxapprox.Report, ...]]:
    """(what the loop saw, reports); options None: plain torch.compile."""
    torch.compiler.reset()
    torch.manual_seed(0)
    made: list[Any] = []

    def compile(model: Any, **settings: Any) -> Any:
        if options is None:
            return torch.compile(model, backend=PLAIN[lowering], **settings)
        ours = {"lowering": lowering, "min_bytes": 0, "strict": True, **options}
        made.append(fxapprox.compile(model, **ours, **settings))
        return made[-1]

    seen = loop(compile)
    return seen, tuple(report for each in made for report in fxapprox.reports(each))


def assert_same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float = 0.0) -> None:
    """Whether tensors are the same, NaN included, in the same layout; None stands for a gradient that is not there."""
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True, check_stride=True)


def assert_near(found: Tensor | None, expected: Tensor | None, limit: float = LIMIT) -> None:
    """Whether a gradient is where plain torch.compile has it, NaN included, in the same layout."""
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert torch.equal(found.isfinite(), expected.isfinite())
    wide = torch.complex128 if found.is_complex() else torch.float64
    mine, theirs = (each.to(wide)[expected.isfinite()] for each in (found, expected))
    assert float((mine - theirs).norm()) <= limit * float(theirs.norm()) + 1e-7


def gradients(*owners: nn.Module | Tensor) -> list[Tensor | None]:
    """Copies of the gradients of modules' parameters, and of tensors."""
    tensors: Iterable[Tensor] = (
        t for owner in owners for t in (owner.parameters() if isinstance(owner, nn.Module) else (owner,))
    )
    return [None if t.grad is None else t.grad.clone() for t in tensors]


class Between(nn.Module):
    """Linear, gelu, whatever is to be tried, linear; (N, 32) to (N, 8)."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(32, 64), middle, nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.middle(F.gelu(self.first(x))))


def mlp() -> nn.Sequential:
    """(N, 32) to (N, 8)."""
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 8))


def conv_net() -> nn.Sequential:
    """(N, 3, 8, 8) to (N, 4)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Flatten(), nn.Linear(1024, 4),
    )  # fmt: skip


def step(model: nn.Module, run: Callable[..., Any], *args: Tensor) -> Seen:
    """One step with a squared loss: the loss; the gradients of parameters and inputs."""
    loss = run(*args).float().square().mean()
    loss.backward()
    return Seen([loss.detach()], gradients(model, *(a for a in args if a.requires_grad)))
