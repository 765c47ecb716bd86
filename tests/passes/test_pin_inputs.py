"""pin_inputs: saved weights and images are saved themselves, not as Inductor's channels-last copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import op_name
from fxapprox.measure.memory import stored_bytes
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.partition import partition
from fxapprox.passes.pin_inputs import copied_inputs, pin_inputs
from fxapprox.passes.plan import plan
from fxapprox.torch_adapter import saved_tensors
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


def test_the_rule_for_copies() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten()]
    forward, _ = halves(joint_of(nn.Sequential(*layers), torch.randn(2, 3, 8, 8)))
    saved = forward.graph.find_nodes(op="output")[0].args[0][1:]  # type: ignore[index]
    inputs = {n.name: n.meta["val"].shape for n in forward.graph.find_nodes(op="placeholder")}
    copied = [tuple(inputs[name]) for name in copied_inputs(forward, saved)]  # type: ignore[arg-type]
    assert copied == [(8, 3, 3, 3), (2, 3, 8, 8)]  # kernels of one pixel or one channel have only one layout
    pin_inputs(forward, num_fwd_outputs=1)
    assert copied_inputs(forward, saved) == ()  # type: ignore[arg-type]


def test_copies_are_part_of_the_baseline() -> None:
    report = fxapprox.explain(two_convolutions(), torch.randn(2, 3, 8, 8), bits=8)
    eager = fxapprox.explain(two_convolutions(), torch.randn(2, 3, 8, 8), bits=8, lowering="eager")
    assert report.baseline_copies_bytes == 4 * (8 * 3 * 9 + 4 * 8 * 9 + 2 * 3 * 64)
    assert report.baseline_bytes - eager.baseline_bytes == report.baseline_copies_bytes
    assert {(d.storage, d.bytes_after) for d in report.copies} == {("not copied (channels-last)", 0)}
    assert "in channels-last copies of 3 inputs" in str(report)
    images = torch.randn(2, 3, 8, 8)
    torch._dynamo.mark_dynamic(images, 0)
    report = fxapprox.explain(two_convolutions(), images, bits=8, dynamic=None)
    assert [d.bytes_after for d in report.at(5).copies if d.bytes_after] == [4 * 5 * 3 * 64]


@pytest.mark.inductor
def test_the_baseline_is_what_plain_compile_holds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 4, 3, groups=2), nn.Flatten(),
    )  # fmt: skip
    images = torch.randn(4, 3, 16, 16)
    report = fxapprox.explain(model, images, bits=8)
    out = torch.compile(model)(images)
    held = stored_bytes(out, exclude=[*model.parameters(), *model.buffers(), images])
    assert report.copies
    assert report.baseline_bytes == held


@pytest.mark.inductor
def test_no_copy_of_a_weight_is_stored() -> None:
    model = two_convolutions()
    images = torch.randn(2, 3, 16, 16)
    held = list(saved_tensors(fxapprox.compile(model, bits=8)(images)))
    own = {t.data_ptr() for t in (*model.parameters(), images)}
    shapes = {p.shape for p in model.parameters() if p.dim() == 4}
    assert [t.shape for t in held if t.shape in shapes and t.data_ptr() not in own] == []
