"""One training step, and how far two gradients are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxapprox import Options
from fxapprox.frontend.backend import Backend
from tools.zoo.models import Case


def step(case: Case, run: Callable[..., Any], seed: int = 1) -> tuple[Tensor, Tensor]:
    """(loss, all gradients in one vector) of one step."""
    loss = forward(case, run, seed)
    loss.backward()
    return loss.detach(), gradients(case.model)


def forward(case: Case, run: Callable[..., Any], seed: int = 1) -> Tensor:
    """The loss of a step, before backward; old gradients are gone."""
    case.model.zero_grad()
    torch.manual_seed(seed)
    return case.loss(run(*case.args))


def gradients(model: nn.Module) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||."""
    return float((found - exact).norm() / exact.norm())


def unrewritten(model: nn.Module) -> Callable[..., Any]:
    """The same partition with nothing encoded: no tensor is large enough."""
    options = Options(bits=None, lowering="eager", min_bytes=2**60)
    return torch.compile(model, backend=Backend(options))
