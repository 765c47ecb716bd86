"""stand_in: nothing is stored for its shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.ir.arguments import operands
from fxapprox.ir.operators import op_name, table_use
from fxapprox.ir.records import Use
from fxapprox.passes.stand_in import stand_in
from tests.passes.graphs import traced
from tools.zoo.training import gradients, relative


class Frozen(nn.Module):
    """Of the second convolution only the operand's gradient is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def pooled(pool: Callable[[Tensor], Tensor]) -> nn.Module:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(pool(self.first(x)))

    return Pooled()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "frozen convolution": Frozen,
    "average": lambda: pooled(lambda h: F.avg_pool2d(h, 5, 1)),
    "adaptive": lambda: pooled(lambda h: F.adaptive_avg_pool2d(h, 3)),
    "largest": lambda: pooled(lambda h: F.adaptive_max_pool2d(h, 3)),
    "padded": lambda: pooled(lambda h: F.pad(h, (2, 2, 2, 2), "replicate")),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
def test_no_operand_is_read_for_its_shape_and_gradients_are_the_same(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model, x = (v.to(memory_format=layout) for v in (MODELS[name](), torch.randn(2, 3, 16, 16)))  # type: ignore[call-overload]
    graph = traced(model, x)
    joint = graph.split(bits=None).joint
    assert stand_in(joint) is joint
    for node in joint.gm.graph.nodes:
        for place, operand in operands(node):
            if node in joint.backward and table_use(node, place) is Use.SHAPE and operand.op == "call_function":
                assert op_name(operand) in ("aten.expand", "aten.empty_strided", "aten.full", "aten.permute")
    model(x).square().mean().backward()
    expected = gradients(model)
    model.zero_grad()
    fxapprox.compile(model, bits=None, lowering="eager", strict=True, min_bytes=0)(x).square().mean().backward()
    assert relative(gradients(model), expected) < 1e-5


def test_what_is_read_for_its_shape_alone_is_not_stored() -> None:
    report = fxapprox.explain(Frozen(), torch.randn(2, 3, 16, 16), bits=None, min_bytes=0)
    stored = {d.value: d.bytes_after for d in report.decisions if d.bytes_after}
    assert len(stored) == 1, "the hyperbolic tangent's derivative"
    pool = fxapprox.explain(MODELS["largest"](), torch.randn(2, 3, 16, 16), bits=None, min_bytes=0)
    assert pool.saved_bytes < pool.baseline_bytes / 10


@pytest.mark.parametrize("name", ["largest", "padded"])
def test_shapes_may_be_symbolic(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    run = fxapprox.compile(model, bits=8, dynamic=True, lowering="eager", strict=True, min_bytes=0)
    for size in (16, 21):
        x = torch.randn(3, 3, size, size + 2)
        found = []
        for call in (model, run):
            model.zero_grad()
            call(x).square().mean().backward()
            found.append(gradients(model))
        assert relative(found[1], found[0]) < 0.02
    (report,) = fxapprox.reports(run)
    assert report.saved_bytes < report.baseline_bytes / 3


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["frozen convolution", "largest"])
def test_stand_ins_under_inductor(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 3, 16, 16)
    model(x).square().mean().backward()
    expected = gradients(model)
    model.zero_grad()
    fxapprox.compile(model, bits=8, strict=True, min_bytes=0)(x).square().mean().backward()
    assert relative(gradients(model), expected) < 0.02
