"""Which values are images in channels-last memory: by what made them, not by how many dimensions they have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxapprox.analysis.layouts import channels_last_images
from fxapprox.ir.tensors import tensor_of
from fxapprox.passes.outline import call_codes
from fxapprox.passes.rewrite import Rewrite
from tests.passes.graphs import traced
from tests.passes.test_outline import calls


class Patches(nn.Module):
    """A convolution makes tokens; then attention of four heads, and GELU: (N, 3, H, W) to (N, H * W / 4, C)."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(3, channels, 2, 2)
        self.projections = nn.ModuleList(nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x).flatten(2).transpose(1, 2)
        for layer in self.projections:
            heads = layer(x).unflatten(2, (4, -1)).transpose(1, 2)
            x = x + F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
            x = F.gelu(layer(x))
        return x


class Pixels(nn.Module):
    """Between convolutions, perceptrons on the channels of each pixel, and GroupNorm: (N, C, H, W) to the same."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.perceptron = nn.Linear(channels, channels)
        self.normalization = nn.GroupNorm(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            y = F.gelu(self.perceptron(convolution(x).permute(0, 2, 3, 1)))
            x = F.silu(self.normalization(x + y.permute(0, 3, 1, 2)))
        return x


def split(model: nn.Module, x: Tensor) -> Rewrite:
    return traced(model, x).split(bits=8, lowering="inductor")


def shapes(halves: Rewrite, names: frozenset[str]) -> set[tuple[int, ...]]:
    values = (tensor_of(node) for node in halves.forward.graph.nodes if node.name in names)
    return {tuple(value.shape) for value in values if value is not None}


def laid_out(halves: Rewrite) -> dict[str, bool]:
    """{value: whether its code is of a channels-last image}, of group codes."""
    codecs = {code.value: code.codec for code in halves.spliced}
    return {name: codec == codec.for_channels_last() for name, codec in codecs.items()}


def test_attention_is_no_image() -> None:
    halves = split(Patches(), torch.randn(2, 3, 16, 16))
    assert shapes(halves, channels_last_images(halves.forward)) == {(2, 256, 8, 8)}
    attended = [node.name for node in halves.forward.graph.nodes if (v := tensor_of(node)) is not None and v.dim() == 4]
    coded = laid_out(halves)
    assert len(coded.keys() & set(attended)) > 1  # four dimensions, and stored in a code
    assert [name for name, last in coded.items() if last] == ["convolution"]


def test_what_a_convolution_takes_no_part_in_becomes_functions() -> None:
    halves = split(Patches(), torch.randn(2, 3, 16, 16))
    assert calls(call_codes(halves.forward, halves.backward, halves.spliced)[0])


def test_images_are_followed_through_normalization_and_back_from_rows() -> None:
    halves = split(Pixels(), torch.randn(2, 16, 8, 8))
    images = channels_last_images(halves.forward)
    assert shapes(halves, images) >= {(2, 16, 8, 8)}
    assert (2, 8, 8, 16) not in shapes(halves, images)  # rows, which the perceptron reads and writes
    coded = laid_out(halves)
    for name, last in coded.items():
        assert last == (shapes(halves, frozenset([name])) == {(2, 16, 8, 8)})
    assert set(coded.values()) == {True, False}


def test_a_graph_without_convolutions_has_none() -> None:
    halves = split(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)), torch.randn(2, 4, 4, 16))
    assert channels_last_images(halves.forward) == frozenset()
