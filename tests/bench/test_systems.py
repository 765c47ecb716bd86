"""The systems that a benchmark compares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxapprox.bench.systems import SYSTEMS, chain_of_layers
from fxapprox.errors import FxApproxError
from fxapprox.frontend.target import Target
from tools.zoo.training import relative


class Network(nn.Module):
    """A stem, layers in a list, and a head, in a sequence around them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4))
        self.stem, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        for layer in self.layers:
            h = layer(h)
        return self.head(h).square().mean()


def test_the_chain_is_the_longest_list_with_most_parameters() -> None:
    model = Network()
    assert chain_of_layers(model) == list(model.layers)
    assert chain_of_layers(nn.Sequential(nn.Flatten(), model)) == list(model.layers)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), lambda x: x], ids=["one layer", "function"])
def test_no_chain(model: object) -> None:
    with pytest.raises(FxApproxError, match="nothing to put checkpoints between"):
        chain_of_layers(model)


@pytest.mark.parametrize(("name", "error"), [("eager", 0.0), ("checkpoint", 0.0), ("int8-hooks", 0.05)])
def test_eager_systems_give_gradients(name: str, error: float) -> None:
    found = []
    for system in ("eager", name):
        torch.manual_seed(0)
        model = Network()
        run, context = SYSTEMS[system].prepare(Target(model, (torch.randn(64, 8),)))
        with context:
            run(torch.randn(64, 8, generator=torch.Generator().manual_seed(0))).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert relative(found[1], found[0]) <= error
    assert bool(error) == bool(relative(found[1], found[0]))
