"""Functions that end at two limits: their derivative, taken from the result, is right however near to these it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from tests.gradient_cases import Around, require_near, scalar

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "its square": lambda h: torch.tanh(h) ** 2,
    "sigmoid on -1 to 1": lambda h: 2 * torch.sigmoid(2 * h) - 1,
    "what a gate leaves": lambda h: (1 - torch.sigmoid(h[:, ::2])) * h[:, 1::2],
    "a gated unit": lambda h: torch.sigmoid(h[:, ::2]) * torch.tanh(h[:, 1::2]),
    "softsign": F.softsign,
    "erf": torch.erf,
    "SiLU": F.silu,
    "softmax of two": lambda h: torch.stack([h, -h], -1).softmax(-1).flatten(1),
}  # fmt: skip


@pytest.mark.parametrize(("scale", "shift"), [(0.3, 3.0), (8.0, 0.0)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_near(name: str, scale: float, shift: float) -> None:
    require_near(Around(FUNCTIONS[name], scale=scale, shift=shift), torch.randn(96, 32))


class Cells(nn.Module):
    """An LSTM's cell by hand; trained ones have gates that are open or shut."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.x, self.h, self.last, self.steepness = nn.Linear(16, 256), nn.Linear(64, 256), nn.Linear(64, 8), steepness

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 64)
        for step in x.unbind(1):
            i, f, g, o = (self.steepness * (self.x(step) + self.h(h))).chunk(4, -1)
            c = torch.sigmoid(f + 2) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return scalar(self.last(h))


@pytest.mark.parametrize("steepness", [1.0, 5.0])
def test_gates_of_recurrent_cells(steepness: float) -> None:
    require_near(Cells(steepness), torch.randn(64, 4, 16))


def test_the_result_is_stored_and_not_an_operand_of_its_size() -> None:
    report = fxapprox.explain(Around(torch.tanh), torch.randn(96, 32), bits=8)
    stored = [entry.codec for graph in (report,) for entry in report.plan.graphs[0]]
    assert sum(getattr(codec, "hollow", False) for codec in stored) == 2
