"""pin_inputs: saved weights and images are saved themselves, not as Inductor's channels-last copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.graph import Joint
from fxapprox.measure import saved_tensors
from fxapprox.operators import op_name
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.partition import partition
from fxapprox.passes.pin_inputs import pin_inputs
from fxapprox.passes.plan import plan
from tests.passes.graphs import joint_of


def halves(joint: Joint) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    return partition(joint, plan(classify(joint, min_bytes=0), Options(bits=None)))


def two_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())


def test_convolutions_read_views_and_forward_returns_the_inputs() -> None:
    forward, _ = halves(joint_of(two_convolutions(), torch.randn(2, 3, 8, 8)))
    pinned = pin_inputs(forward, num_fwd_outputs=1)
    assert len(pinned) == 3  # two weights and the images
    inputs = {n.name: n for n in forward.graph.find_nodes(op="placeholder")}
    saved = forward.graph.find_nodes(op="output")[0].args[0][1:]  # type: ignore[index]
    for name in pinned:
        assert inputs[name] in saved
        assert {op_name(user) for user in inputs[name].users} - {"output"} == {"aten.as_strided"}
    forward.graph.lint()


def test_what_has_no_channels_last_layout_is_left_alone() -> None:
    forward, _ = halves(joint_of(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(16, 8)))
    assert pin_inputs(forward, num_fwd_outputs=1) == ()


@pytest.mark.inductor
def test_no_copy_of_a_weight_is_stored() -> None:
    model = two_convolutions()
    images = torch.randn(2, 3, 16, 16)
    held = list(saved_tensors(fxapprox.compile(model, bits=8)(images)))
    own = {t.data_ptr() for t in (*model.parameters(), images)}
    shapes = {p.shape for p in model.parameters() if p.dim() == 4}
    assert [t.shape for t in held if t.shape in shapes and t.data_ptr() not in own] == []
