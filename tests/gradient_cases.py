"""Small networks around one function, and how far their gradients are off: in all, and of the worst parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fxapprox import Options
from fxapprox.measure.gradient_error import Tally, total_error
from fxapprox.planning.bound import counted
from tests.passes.graphs import traced

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


def require_near(model: nn.Module, *inputs: Tensor, bits: Sequence[int] = tuple(LIMITS)) -> None:
    """Fails where gradients at these numbers of bits are farther off plain autograd's than ``LIMITS``."""
    model(*inputs).backward()  # lazy layers get their sizes
    parameters = list(model.parameters())
    exact = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    joint = traced(model, *inputs)
    for each in bits:
        halves = joint.split(bits=each, min_bytes=Options().min_bytes)
        total, worst = _errors(exact, joint.gradients(halves, parameters)[1])
        assert total <= LIMITS[each][0], f"{total:.1%} in all at {each} bits"
        assert worst <= LIMITS[each][1], f"{worst:.1%} of one parameter at {each} bits"


def _errors(exact: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[float, float]:
    """The relative error of all gradients together, and of the parameter that is the farthest off."""
    tallies = [Tally() for _ in exact]
    for tally, own, true in zip(tallies, found, exact, strict=True):
        tally.add(own, true)
    each = [total_error([tally]).error for tally in tallies]
    total = total_error(tallies).error
    assert total is not None
    return total, max(each[i] or 0.0 for i in counted([tally.exact**0.5 for tally in tallies]))
