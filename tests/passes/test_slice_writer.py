"""slice_writer: slices in the graph: where their rows go, how sums are kept, how what they read is laid out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import op_name
from fxapprox.ir.regions import Region as Calls
from tests.analysis.test_separable import WIDTH, Layer
from tests.passes.graphs import traced
from tests.passes.test_slice import IMAGES, TOKENS, VOCABULARY, Blocks, Language, batch, close


class Attention(nn.Module):
    """Queries, keys and values are views of one value, and what attention makes is laid out as queries are."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.wide, self.narrow = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        hidden = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.narrow(nn.functional.gelu(self.wide(hidden))).square().mean()


@pytest.mark.parametrize("bits", [None, 4])
def test_layouts(bits: int | None) -> None:
    """What is no value of its own in memory is copied; views of results are had as they were."""
    close(traced(Attention(), torch.randn(8, 32, WIDTH)), bits, same=False)


def test_bfloat16_sums_are_kept_in_float32() -> None:
    joint = traced(Language().bfloat16(), *batch())
    close(joint, None, rtol=2e-2, atol=1e-4)
    halves = joint.split(bits=None, slices=4)
    sums = [
        n for n in halves.forward.graph.nodes if op_name(n) == "getitem" and n.meta["val"].shape == (VOCABULARY, WIDTH)
    ]
    assert sums
    assert all(node.meta["val"].dtype == torch.float32 for node in sums)


def test_each_operator_runs_once_for_each_row() -> None:
    joint = traced(Language(), *batch())
    graph = joint.split(bits=None, slices=4).forward.graph
    exponentials = [node.meta["val"].shape for node in graph.nodes if op_name(node) == "aten.exp"]
    assert sum(shape[0] for shape in exponentials) % TOKENS == 0
    assert all(shape[0] == TOKENS // 4 for shape in exponentials)


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_rows_are_written_into_their_place(lowering: str) -> None:
    """For Inductor over what is read for the last time, or into memory of their own; and the result is the same."""
    joint = traced(Blocks(nn.BatchNorm2d), IMAGES)
    whole = joint.step(joint.split(bits=None, slices=None, lowering=lowering))
    halves = joint.split(bits=None, slices=4, lowering=lowering)
    written = [n for n in halves.backward.graph.nodes if adapter.written_to(n) is not None]
    assert bool(written) == (lowering == "inductor")
    if written:
        rooms = {op_name(room) for n in written if (room := adapter.written_to(n)) is not None}
        assert "aten.empty_strided" in rooms
    for a, b in zip(joint.step(halves).gradients, whole.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bits", [None, 4])
def test_every_slice_can_be_a_function(bits: int | None) -> None:
    """Also where products read views of what a slice gets, and others views of a result, which is written once."""
    joint = traced(nn.Sequential(Layer(), Layer()), torch.randn(8, 16, WIDTH))
    halves = joint.split(bits=bits, slices=4, lowering="inductor")
    assert halves.slices
    graphs = {"forward": halves.forward.graph, "backward": halves.backward.graph}
    nodes = {half: {node.name: node for node in graph.nodes} for half, graph in graphs.items()}
    for part in halves.slices:
        for names in part.names:
            region = Calls.of(nodes[part.half][name] for name in names if name in nodes[part.half])
            assert region.can_be_called()
    whole = joint.step(joint.split(bits=bits, slices=None, lowering="inductor"))
    for a, b in zip(joint.step(halves).gradients, whole.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_images_that_lie_channels_last_are_reshaped() -> None:
    """A view of images in their order is none of them channels-last; max pooling takes one of its gradient."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 16, 3)
    )
    joint = traced(lambda x: model(x).square().mean(), IMAGES)
    whole = joint.step(joint.split(bits=4, slices=None, lowering="inductor"))
    halves = joint.split(bits=4, slices=4, lowering="inductor")
    sliced = {op for part in halves.slices for op in part.operators}
    assert any(name.startswith("scatter_add") for name in sliced)
    for a, b in zip(joint.step(halves).gradients, whole.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
