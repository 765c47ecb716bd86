"""call_arithmetic: what is computed of channels runs in no Python, is compiled once, and gives the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.passes.call_arithmetic import call_arithmetic
from tests.passes.graphs import traced


class Blocks(nn.Module):
    """Convolutions, each normalized and rectified, on as many channels; a row code at the end."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        layers = (m for _ in range(depth) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
        self.layers, self.end = nn.Sequential(*layers), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.gelu(self.end(self.layers(x).permute(0, 2, 3, 1)))
        return nn.functional.gelu(self.end(y)) * y


def small(gm: fx.GraphModule) -> list[str]:
    return [n.name for n in gm.graph.nodes if adapter.arithmetic_of(n.target) is not None]


def functions(gm: fx.GraphModule) -> list[str]:
    calls = gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
    return [str(call.args[1]) for call in calls]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_operators_become_functions_that_give_the_same_bits(bits: int) -> None:
    joint = traced(Blocks(), torch.randn(4, 8, 8, 8))
    halves = joint.split(bits=bits)
    found = [call_arithmetic(halves.forward), call_arithmetic(halves.backward)]
    for before, after in zip((halves.forward, halves.backward), found, strict=True):
        assert small(before)
        assert not small(after)
        assert len(functions(after)) == len(small(before)) > len(set(functions(after)))
        assert [n.name for n in after.graph.find_nodes(op="placeholder")] == [
            n.name for n in before.graph.find_nodes(op="placeholder")
        ]
    inputs = [value.detach().clone() if isinstance(value, torch.Tensor) else value for value in joint.inputs]
    results = [forward(*map(_copied, inputs)) for forward in (halves.forward, found[0])]
    for a, b in zip(*results, strict=True):
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)
    saved, given = results[0][joint.outputs :], [torch.randn_like(o) for o in results[0][:1]]
    for a, b in zip(halves.backward(*saved, *given), found[1](*saved, *given), strict=True):
        assert a is b is None or torch.equal(a, b)


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_a_graph_without_channels_is_returned_as_it_is() -> None:
    halves = traced(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(4, 8)).split(bits=None)
    assert call_arithmetic(halves.forward) is halves.forward


def test_symbolic_sizes_stay_operators() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
    report = fxapprox.explain(model, torch.randn(32, 64), bits=8, dynamic=True, min_bytes=0)
    assert report.backward is not None
    assert small(report.backward)
    assert call_arithmetic(report.backward) is report.backward


@pytest.mark.inductor
@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.long)])
def test_compiled_by_inductor(bits: int) -> None:
    torch.manual_seed(0)
    model, x = Blocks(2), torch.randn(4, 8, 16, 16)
    gradients = []
    for lowering in ("eager", "inductor"):
        compiled = fxapprox.compile(model, bits=bits, lowering=lowering, min_bytes=0, strict=True)
        gradients.append(torch.autograd.grad(compiled(x).square().mean(), list(model.parameters())))
    for a, b in zip(*gradients, strict=True):  # a code may fall on the other side of a rounding
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-6
