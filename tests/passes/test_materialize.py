"""materialize: sums of a residual stream are computed once, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import op_name
from fxapprox.measure.memory import peak_bytes
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.materialize import materialize
from fxapprox.passes.partition import partition
from fxapprox.passes.plan import plan
from tests.passes.graphs import joint_of


class Residual(nn.Module):
    """A stream to which convolutions add, normalized before each: (N, C, H, W) to one number for each C."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + convolution(norm(x).relu())
        return x.mean((0, 2, 3))


def forward_of(model: Callable[..., Any], *args: Tensor) -> fx.GraphModule:
    joint = joint_of(model, *args)
    return partition(joint, plan(classify(joint, min_bytes=0), Options(bits=None)))[0]


def unsaved(forward: fx.GraphModule) -> fx.GraphModule:
    """As if what backward needs were encoded."""
    (output,) = forward.graph.find_nodes(op="output")
    output.args = (output.args[0][:1],)
    return forward


def kept_in(forward: fx.GraphModule) -> list[fx.Node]:
    return forward.graph.find_nodes(op="call_function", target=adapter.IN_MEMORY)


def test_sums_with_several_readers_are_read_from_memory() -> None:
    forward = unsaved(forward_of(Residual(8, 3), torch.randn(8, 8, 16, 16)))
    names = materialize(forward)
    assert len(names) == 2  # the last sum has one reader
    for node in kept_in(forward):
        assert list(node.args[0].users) == [node]  # type: ignore[union-attr]
    forward.graph.lint()


def test_what_is_small_or_saved_anyway_is_left_alone() -> None:
    assert materialize(forward_of(Residual(8, 3), torch.randn(1, 8, 8, 8))) == ()
    assert materialize(forward_of(Residual(8, 3), torch.randn(8, 8, 16, 16))) == ()  # saved exactly


def test_a_scale_for_each_row_is_no_addend() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        y = x * x.amax(1, keepdim=True)
        return (y * (y * w).sigmoid()).sum()

    x, w = torch.randn(2**15, 64), torch.ones((), requires_grad=True)  # the scales have 128 KiB
    assert materialize(unsaved(forward_of(f, x, w))) == ()


@pytest.mark.inductor
def test_addends_die() -> None:
    torch.manual_seed(0)
    model, x = Residual(16, 6), torch.randn(32, 16, 32, 32)
    compiled = fxapprox.compile(model, bits=4)

    def step() -> None:
        compiled(x).sum().backward()

    step()
    model.zero_grad(set_to_none=True)
    stream = x.nbytes
    assert peak_bytes(step).peak < 7 * stream  # without the pass: one more for each of up to four addends


class Tied(nn.Module):
    """An embedding that is also the head, with layers between them: tokens (N, T) to the sum of squared logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(6)))

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(self.layers(self.embedding(tokens)), self.embedding.weight).square().sum(-1)


def test_a_product_is_not_put_off_to_a_sum_far_behind() -> None:
    compiled = fxapprox.compile(Tied(), bits=8, lowering="eager")
    compiled(torch.randint(32, (8, 16))).sum().backward()
    (report,) = fxapprox.reports(compiled)
    assert report.backward is not None
    (kept,) = report.backward.graph.find_nodes(op="call_function", target=adapter.IN_MEMORY)
    assert op_name(kept.args[0]) == "aten.mm"
    assert [op_name(user) for user in kept.users] == ["aten.add"]
