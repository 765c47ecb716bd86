"""workspace: when a library on the CPU needs memory of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxapprox.ir.operators import op_name
from fxapprox.memory.workspace import CONVOLUTION_BACKWARD, is_slow_alone
from tests.passes.graphs import traced


@pytest.mark.parametrize(("depth", "slow"), [(16, True), (24, False)])
def test_convolutions_of_one_image(depth: int, slow: bool) -> None:
    """ATen has a way of its own for one small image, which copies it for each of 27 places of the kernel."""
    model = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1))
    graph = traced(model, torch.randn(2, 16, depth, 64, 8)).gm.graph
    convolutions = [node for node in graph.nodes if op_name(node) in ("aten.convolution", CONVOLUTION_BACKWARD)]
    assert {is_slow_alone(node) for node in convolutions} == {slow}
    assert not any(is_slow_alone(node) for node in graph.nodes if node not in convolutions)
