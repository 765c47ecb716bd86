"""lay_out: backward's convolutions read images in channels-last memory, and no image is there twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.graph import tensor_of
from fxapprox.measure import peak_bytes
from fxapprox.passes.lay_out import lay_out
from tests.passes.graphs import traced


def network(channels: int = 8, layers: int = 3) -> nn.Sequential:
    """Convolutions, each normalized over groups of channels: (N, C, H, W) to (N, C, H, W)."""
    made = []
    for _ in range(layers):
        made += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(2, channels), nn.GELU()]
    return nn.Sequential(*made)


def gradients_of_convolutions(backward: fx.GraphModule) -> list[fx.Node]:
    return backward.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)


def images_of(backward: fx.GraphModule) -> list[fx.Node]:
    """What the gradients are made from, but the images that the network was given."""
    operands = [operand for node in gradients_of_convolutions(backward) for operand in node.args[:2]]  # type: ignore[misc]
    return [operand for operand in operands if not operand.name.startswith("primals")]


def is_channels_last(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.is_contiguous(memory_format=torch.channels_last)


def test_what_backward_makes_is_laid_out_and_inputs_are_not() -> None:
    torch.manual_seed(0)
    backward = traced(network(), torch.randn(2, 8, 16, 16)).split(bits=8).backward
    before = images_of(backward)
    names = lay_out(backward)
    assert names == tuple(node.name for node in before)
    assert len(names) == 5  # three gradients, and two decoded images; the first one is the user's
    assert all(map(is_channels_last, images_of(backward)))
    backward.graph.lint()


def test_only_the_lowering_that_lays_out_images_is_told() -> None:
    joint = traced(network(), torch.randn(2, 8, 16, 16))
    eager, compiled = joint.split(bits=4), joint.split(bits=4, lowering="inductor")
    assert not any(map(is_channels_last, images_of(eager.backward)))
    assert all(map(is_channels_last, images_of(compiled.backward)))
    assert any(part.meta["val"].dim() == 3 for parts in compiled.parts for part in parts.nodes)
    here, there = joint.step(eager), joint.step(compiled)
    assert here.stored == there.stored
    torch.testing.assert_close(there.gradient, here.gradient, rtol=1e-4, atol=1e-5)


def test_graphs_without_convolutions_are_left_alone() -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
    backward = traced(dense, torch.randn(2, 1, 8, 8)).split(bits=8, lowering="inductor").backward
    assert lay_out(backward) == ()


def test_what_is_read_elsewhere_is_read_in_the_same_memory() -> None:
    backward = traced(network(layers=1), torch.randn(2, 8, 16, 16)).split(bits=8, lowering="inductor").backward
    for operand in images_of(backward):
        assert operand.target is adapter.IN_ORDER
        (kept,) = operand.all_input_nodes
        assert kept.target is adapter.IN_MEMORY


def test_checkpoints_are_laid_out_as_well() -> None:
    compiled = traced(network(layers=4), torch.randn(2, 8, 16, 16)).split(bits=4, lowering="inductor", checkpoint=2)
    assert compiled.segments
    assert all(map(is_channels_last, images_of(compiled.backward)))


@pytest.mark.inductor
@pytest.mark.parametrize("dynamic", [False, True])
def test_images_are_not_there_twice(dynamic: bool) -> None:
    torch.manual_seed(0)
    model, x = network(16, 6), torch.randn(16, 16, 32, 32)

    def loss(x: Tensor) -> Tensor:
        return model(x).square().mean()

    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    compiled = fxapprox.compile(loss, bits=4)
    compiled(x).backward()
    model.zero_grad(set_to_none=True)
    assert peak_bytes(lambda: compiled(x).backward()).peak < 5 * x.nbytes
