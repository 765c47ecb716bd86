"""Small networks around one function, and how far their gradients are off: in all, and of the worst parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.measure.gradient_error import Tally, counted, total_error

LIMITS = {8: (0.03, 0.10), 4: (0.25, 0.45)}  # of all parameters together, and of each


class Around(nn.Module):
    """Two layers, a function of what they make, and a layer; the loss has no symmetry that would cancel gradients."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 64), nn.Linear(64, 64), nn.LazyLinear(8)
        self.function, self.scale = function, scale
        self.register_buffer("shift", torch.randn(64).sign() * shift)

    def forward(self, x: Tensor) -> Tensor:
        h = self.scale * self.second(torch.tanh(self.first(x))) + self.shift
        return scalar(self.last(self.function(h)))


def scalar(out: Tensor) -> Tensor:
    """A loss that weighs every output differently."""
    weighted = out * torch.linspace(0.5, 1.5, out.shape[-1])
    return weighted.square().mean() + weighted.mean()


def errors(model: nn.Module, *inputs: Tensor, bits: int) -> tuple[float, float]:
    """The relative error of all gradients together, and of the parameter that is the farthest off."""
    model(*inputs)  # lazy layers get their sizes
    exact = _gradients(model, model, inputs)
    found = _gradients(model, fxapprox.compile(model, bits=bits, lowering="eager"), inputs)
    tallies = [Tally() for _ in exact]
    for tally, own, true in zip(tallies, found, exact, strict=True):
        tally.add(own, true)
    each = [total_error([tally]).error for tally in tallies]
    total = total_error(tallies).error
    assert total is not None
    return total, max(each[i] or 0.0 for i in counted([tally.exact**0.5 for tally in tallies]))


def require_near(model: nn.Module, *inputs: Tensor, bits: int) -> None:
    """Fails where gradients are farther off than ``LIMITS``."""
    found = errors(model, *inputs, bits=bits)
    assert found[0] <= LIMITS[bits][0], f"{found[0]:.1%} in all"
    assert found[1] <= LIMITS[bits][1], f"{found[1]:.1%} of one parameter"


def _gradients(model: nn.Module, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    run(*inputs).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
