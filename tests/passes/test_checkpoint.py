"""checkpoint: segments that are computed again change no bit, and from encoded boundaries take no decision again."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.ir.operators import op_name
from fxapprox.measure.memory import stored_bytes
from fxapprox.passes.rewrite import Rewrite
from fxapprox.report.accounting import report_of
from fxapprox.report.result import Report
from tests.passes.graphs import Step, Traced, traced
from tools.zoo.models import MODELS
from tools.zoo.models.mobilenet_v3 import Bottleneck, InvertedResidual
from tools.zoo.training import relative

pytestmark = pytest.mark.usefixtures("one_thread")


def clamped() -> nn.Module:
    """Inverted residuals with hard swish and relu6."""
    lines = (
        Bottleneck(3, 32, 8, True, True, 1),
        Bottleneck(3, 32, 8, False, True, 1),
        Bottleneck(3, 32, 16, True, False, 2),
    )
    blocks = (InvertedResidual(8, line) for line in lines)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), *blocks, nn.Flatten(), nn.Linear(16 * 64, 4))


def pooled() -> nn.Module:
    """Convolutions with max pooling, and a classifier with log-softmax."""
    sizes = ((3, 8), (8, 8), (8, 16), (16, 16))
    layers = ((nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)) for a, b in sizes)
    return nn.Sequential(*chain.from_iterable(layers), nn.Flatten(), nn.Linear(16, 10), nn.LogSoftmax(1))


class Attention(nn.Module):
    """Attention layers that are not fused: softmax inside a segment."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            q, k, v = layer(x).chunk(3, -1)
            x = x + torch.softmax(q @ k.transpose(1, 2) / 32**0.5, -1) @ v
        return x


def zoo(name: str, **settings: Any) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def made() -> tuple[nn.Module, tuple[Tensor, ...]]:
        case = MODELS[name](**settings)
        return case.model, case.args

    return made


IMAGES = (torch.randn(4, 3, 16, 16),)
ZOO: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "resnet": zoo("demo_resnet", depth=14, batch=4, width=4),
    "unet": zoo("unet", width=8, size=16),
    "gpt": zoo("gpt", layers=3, width=32, sequence=32),
    "gpt2": zoo("gpt2"),
    "llama": zoo("llama"),
    "bert": zoo("bert", layers=1),
    "mlp": zoo("mlp_dropout"),
    "clamped": lambda: (clamped(), IMAGES),
    "pooled": lambda: (pooled(), IMAGES),
    "attention": lambda: (Attention(), (torch.randn(4, 16, 32),)),
}


@cache
def joint(name: str) -> Traced:
    """Traced once for all tests."""
    torch.manual_seed(0)
    model, args = ZOO[name]()
    return traced(model, *args)


@cache
def without(name: str, bits: int | None) -> Step:
    return joint(name).step(joint(name).split(bits=bits))


def checkpointed(name: str, **options: Any) -> tuple[Step, Rewrite, Report]:
    halves = joint(name).split(**options)
    return joint(name).step(halves), halves, report_of(halves, lowering="eager")


COUNTS: dict[int | None, tuple[int | str, ...]] = {None: ("sqrt", 5), 4: (3,)}


@pytest.mark.parametrize("name", ZOO)
def test_exact_boundaries_change_no_bit(name: str) -> None:
    """Loss, gradients and running statistics; dropout repeats its masks. What is reported is what is stored."""
    segments = 0
    for bits, counts in COUNTS.items():
        for count in counts:
            found, halves, report = checkpointed(name, bits=bits, checkpoint=count)
            assert found.same_as(without(name, bits)), (bits, count)
            assert report.saved_bytes == found.stored, (bits, count)
            assert count == "sqrt" or len(halves.segments) < count  # type: ignore[operator]
            segments += len(halves.segments)
    assert segments


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("count", ["sqrt", 0.5, 2, 1000])
@pytest.mark.parametrize("name", ["mlp", "pooled"])
def test_any_number_of_segments(name: str, count: float | str, bits: int) -> None:
    """More segments than there are places for are as many as there are."""
    found, halves, report = checkpointed(name, bits=bits, checkpoint=count)
    assert found.same_as(without(name, bits))
    assert report.saved_bytes == found.stored
    assert len(halves.segments) <= {"sqrt": 10, 0.5: 10, 2: 1, 1000: 20}[count]


def test_the_report_tells_boundaries_from_what_is_computed_again() -> None:
    """A ReLU's mask and a normalization's statistics are held where the boundary is a code.

    Of five segments: with four the lowest peak has a boundary at which nothing is encoded.
    """
    _, halves, report = checkpointed("resnet", bits=8, checkpoint=5, checkpoint_bits=8)
    by_storage: dict[str, list[fxapprox.Decision]] = {}
    for decision in report.decisions:
        by_storage.setdefault(decision.storage, []).append(decision)
    assert {"boundary, 8-bit group", "for recomputation, exact", "for recomputation, 1-bit mask"} <= by_storage.keys()
    again = [d for storage, found in by_storage.items() if "recomputed in segment" in storage for d in found]
    assert again
    returned = {n.name for n in halves.forward.graph.find_nodes(op="output")[0].args[0] if n is not None}
    assert not returned & {name for segment in halves.segments for name in segment.recomputed}
    assert not any(d.bytes_after for d in again)
    exact = checkpointed("resnet", bits=None, checkpoint=4)[2]
    assert "boundary, 8-bit group" not in {d.storage for d in exact.decisions}
    assert sum(d.bytes_before for d in exact.decisions) == exact.baseline_bytes


# --- encoded boundaries --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_encoded_boundaries_keep_forward_and_move_gradients_little(name: str) -> None:
    """Beside what 8-bit activations cost."""
    exact, coded = without(name, None), without(name, 8)
    for bits, limit in ((8, 0.02), (4, 0.3)):
        found, _, report = checkpointed(name, bits=8, checkpoint=4, checkpoint_bits=bits)
        assert all(map(torch.equal, found.outputs, exact.outputs))
        error, own = (relative(step.gradient, exact.gradient) for step in (found, coded))
        assert error < own + limit
        assert report.saved_bytes == found.stored


def rectifiers(batch: int, width: int) -> Traced:
    """A deep network whose every layer decides."""
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(width, width), nn.ReLU())]
    return traced(nn.Sequential(*layers, nn.Linear(width, 1)), torch.randn(batch, width))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_deep_network_keeps_every_mask(bits: int) -> None:
    """With one sample a bias's gradient is that of its rectifier's operand: 0 exactly where forward's mask is."""
    call = rectifiers(1, 256)
    exact = call.step(call.split(bits=None))
    halves = call.split(bits=8, checkpoint=4, checkpoint_bits=bits)
    found = call.step(halves)
    assert halves.segments
    assert report_of(halves, lowering="eager").saved_bytes == found.stored
    assert any(not torch.equal(a, b) for a, b in zip(found.gradients, exact.gradients, strict=True))
    for a, b in zip(found.gradients, exact.gradients, strict=True):
        if a.dim() == 1:
            assert torch.equal(a == 0, b == 0)
            torch.testing.assert_close(a, b)  # masks and weights alone make it


def test_no_decision_is_taken_again() -> None:
    """Behind the first boundary nothing rectifies or compares; the first segment starts from the exact input."""
    halves = rectifiers(64, 64).split(bits=8, checkpoint=4, checkpoint_bits=4)
    assert any("boundary, 4-bit" in d.storage for d in report_of(halves, lowering="eager").decisions)
    order = {a.name: i for i, a in enumerate(halves.activations)}
    first = min(order[value] for segment in halves.segments for value in segment.boundary)
    again = [n for n in halves.backward.graph.nodes if any(order.get(m.name, -1) > first for m in n.all_input_nodes)]
    assert again
    assert not {"aten.relu", "aten.le"} & {op_name(node) for node in again}


# --- what must not happen twice ------------------------------------------------------------------

CALLS: Counter[str] = Counter()


@torch.library.custom_op("fxapprox_tests::counted", mutates_args=())
def counted(x: Tensor) -> Tensor:
    CALLS["forward"] += 1
    return x.sin()


@counted.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


counted.register_autograd(lambda ctx, gradient: gradient * ctx.saved_tensors[0].cos(), setup_context=_keep)


def stack(depth: int = 6, between: Callable[[Tensor], Tensor] = torch.tanh, width: int = 64) -> nn.Module:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + between(layer(x))
            return x

    torch.manual_seed(0)
    return Stack()


def test_operators_nobody_has_described_run_once() -> None:
    call = traced(stack(between=lambda x: counted(x).tanh()), torch.randn(32, 64))
    plain = call.step(call.split(bits=None))
    halves = call.split(bits=None, checkpoint=3)
    CALLS.clear()
    assert call.step(halves).same_as(plain)
    assert halves.segments
    assert CALLS["forward"] == 6


def test_random_masks_are_saved_not_the_random_numbers() -> None:
    _, halves, report = checkpointed("mlp", bits=8, checkpoint=1000)
    assert halves.segments
    assert not any("random" in str(node.target) for node in halves.backward.graph.nodes)
    assert not any("random" in decision.value for decision in report.decisions if decision.bytes_after)


class Stateful(nn.Module):
    """Reads a buffer, and changes it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = stack()
        self.register_buffer("state", torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner((x * self.state).tanh())
        self.state.mul_(0.5)
        return x


def test_inputs_that_forward_changes_are_not_read_again() -> None:
    x, found = torch.randn(32, 64), []
    eager = Stateful()
    eager(x).sum().backward()
    for options in ({}, {"checkpoint": 3}):
        torch._dynamo.reset()
        model = Stateful()
        compiled = fxapprox.compile(model, bits=None, lowering="eager", min_bytes=0, **options)
        told: Any = pytest.warns(UserWarning, match="input that forward changes in place")
        with told if options else warnings.catch_warnings():
            compiled(x).sum().backward()
        found.append([p.grad for p in model.parameters()] + [model.state])
    assert all(map(torch.equal, *found))  # type: ignore[arg-type]
    for own, expected in zip(found[0], [p.grad for p in eager.parameters()], strict=False):
        torch.testing.assert_close(own, expected)
    (report,) = fxapprox.reports(compiled)
    assert not report.fallback
    assert not report.segments
    torch._dynamo.reset()
    with pytest.raises(fxapprox.UnsupportedGraph, match="in place"):
        fxapprox.compile(Stateful(), bits=None, lowering="eager", min_bytes=0, checkpoint=3, strict=True)(x)


# --- through torch.compile -----------------------------------------------------------------------


class Sized(nn.Module):
    """Uses its batch size inside: backward needs symbolic sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            h = layer(x).view(x.shape[0] * 4, 16).sin()
            x = x + self.dropout(torch.relu(h)).view(x.shape[0], 4, 16) / x.shape[0]
        return x


@pytest.mark.filterwarnings("ignore:checkpoint_bits has nothing to work on")
@pytest.mark.parametrize("settings", [{"bits": None}, {"bits": 8, "checkpoint_bits": 8}])
def test_dynamic_shapes(settings: dict[str, Any]) -> None:
    gradients: list[list[Tensor]] = []
    for count in (None, 3):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, found = Sized(), []
        compiled = fxapprox.compile(
            model, dynamic=True, checkpoint=count, lowering="eager", min_bytes=0, strict=True, **settings
        )
        for batch in (3, 5, 8):
            torch.manual_seed(batch)
            x = torch.randn(batch, 4, 16)
            out = compiled(x)
            (report,) = fxapprox.reports(compiled)
            stored = stored_bytes(out, exclude=[x, *model.parameters()])
            assert stored == report.at(batch).saved_bytes
            out.square().sum().backward()
            found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        gradients.append(found)
    assert report.segments
    if settings.get("checkpoint_bits"):
        assert all(relative(b, a) < 0.05 for a, b in zip(*gradients, strict=True))
    else:
        assert all(map(torch.equal, *gradients))


def test_a_model_without_parameters() -> None:
    def chained(x: Tensor) -> Tensor:
        for _ in range(8):
            x = (x @ x).tanh()
        return x

    found = []
    for count in (None, 3):
        torch._dynamo.reset()
        x = torch.linspace(-0.2, 0.2, 4096).view(64, 64).requires_grad_()
        compiled = fxapprox.compile(chained, bits=None, checkpoint=count, lowering="eager", min_bytes=0, strict=True)
        compiled(x).sum().backward()
        found.append(x.grad)
    assert fxapprox.reports(compiled)[0].segments
    assert torch.equal(found[0], found[1])  # type: ignore[arg-type]


def test_two_forwards_before_one_backward() -> None:
    found = []
    for count in (None, 3):
        torch._dynamo.reset()
        model = stack(between=lambda x: F.dropout(torch.tanh(x), 0.2))
        compiled = fxapprox.compile(model, bits=8, checkpoint=count, lowering="eager", min_bytes=0, strict=True)
        torch.manual_seed(1)
        first, second = compiled(torch.randn(32, 64)), compiled(torch.randn(32, 64))
        (first.square().sum() + second.sum()).backward()
        found.append([p.grad for p in model.parameters()])
    assert fxapprox.reports(compiled)[0].segments
    assert all(map(torch.equal, *found))  # type: ignore[arg-type]


@pytest.mark.inductor
def test_compiled_by_inductor() -> None:
    found = []
    for count in (None, 3):
        torch._dynamo.reset()
        model = stack(between=lambda x: F.dropout(torch.relu(x), 0.2), depth=4)
        compiled = fxapprox.compile(model, bits=8, checkpoint=count, min_bytes=0, strict=True)
        torch.manual_seed(1)
        compiled(torch.randn(64, 64)).square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
