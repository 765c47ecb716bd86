"""One training step of a case, how far two gradients are apart, and what is compiled beside ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxapprox import Options
from fxapprox import torch_adapter as adapter
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


def plain(model: Callable[..., Any], lowering: str, dynamic: bool | None = None) -> Any:
    """What torch.compile alone makes of the model: the baseline, in both lowerings.

    With lowering "eager", the graphs of torch's own partition run operator by operator, after the same passes that
    Inductor and fxapprox run over the joint graph: random numbers are those of ``fxapprox.compile(lowering="eager")``,
    which backend="aot_eager_decomp_partition" draws in another way.
    """
    return torch.compile(model, backend="inductor" if lowering == "inductor" else _eagerly, dynamic=dynamic)


def _eagerly(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return adapter.compile_eager(gm, inputs, adapter.JointPartitioner(_partition, None), {})


def _partition(gm: fx.GraphModule, inputs: Sequence[Any], **rest: Any) -> adapter.Partition:
    adapter.seed_random_numbers(gm)
    return adapter.exact_partition(gm, inputs, **rest)
