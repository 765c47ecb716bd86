"""lay_out: backward's convolutions read images in channels-last memory, and no image is there twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.ir.tensors import tensor_of
from fxapprox.measure.memory import peak_bytes
from fxapprox.passes.lay_out import lay_out
from tests.passes.graphs import traced


def network(channels: int = 8, layers: int = 3) -> nn.Sequential:
    """Convolutions, each normalized over groups of channels: (N, C, H, W) to (N, C, H, W)."""
    made = []
    for _ in range(layers):
        made += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(2, channels), nn.GELU()]
    return nn.Sequential(*made)


def images_of(backward: fx.GraphModule) -> list[fx.Node]:
    """What the gradients of convolutions are made from, but of those whose image is the user's."""
    nodes = backward.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
    return [operand for node in nodes if node.args[1].op != "placeholder" for operand in node.args[:2]]  # type: ignore[misc, union-attr]


def is_channels_last(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.is_contiguous(memory_format=torch.channels_last)


def test_decoded_images_and_the_gradients_beside_them_are_laid_out() -> None:
    torch.manual_seed(0)
    backward = traced(network(), torch.randn(2, 8, 16, 16)).split(bits=8).backward
    before = images_of(backward)
    names = lay_out(backward)
    assert names == tuple(node.name for node in before)
    assert len(names) == 4
    assert all(map(is_channels_last, images_of(backward)))
    for operand in images_of(backward):  # in memory once, whoever reads it
        assert operand.target is adapter.IN_ORDER
        assert [node.target for node in operand.all_input_nodes] == [adapter.IN_MEMORY]
    backward.graph.lint()


def test_what_is_saved_exactly_or_given_is_read_as_it_comes() -> None:
    exact = traced(network(), torch.randn(2, 8, 16, 16)).split(bits=None).backward
    assert lay_out(exact) == ()
    last = nn.Sequential(network(layers=1), nn.Conv2d(8, 8, 3))  # its gradient comes from outside
    given = traced(last, torch.randn(2, 8, 16, 16)).split(bits=8).backward
    assert lay_out(given) == ()


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


def test_what_segments_compute_from_codes_is_laid_out() -> None:
    joint = traced(network(layers=4), torch.randn(2, 8, 16, 16))
    compiled = joint.split(bits=4, lowering="inductor", checkpoint=2, checkpoint_bits=8)
    assert compiled.segments
    assert is_channels_last(images_of(compiled.backward)[1])  # of the last segment, whose boundary is a code


@pytest.mark.inductor
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.long)])
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
