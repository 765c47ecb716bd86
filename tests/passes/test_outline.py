"""outline: codes that are alike become calls of one function, and no bit changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch._inductor.utils import fresh_cache

import fxapprox
from fxapprox.ir.operators import op_name
from fxapprox.passes.outline import call_codes, inline_codes
from fxapprox.passes.pipeline import FOR_INDUCTOR, leaving_out
from fxapprox.passes.rewrite import Rewrite, for_inductor
from tests.passes.graphs import traced
from tests.passes.test_checkpoint import Attention
from tools.zoo.models import MODELS


class Perceptrons(nn.Module):
    """Blocks that are alike: a group code before each GELU."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, dtype=dtype) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.gelu(layer(x)) * 2
        return x


def outlined(halves: Rewrite) -> Rewrite:
    forward, backward = for_inductor(halves.joint, (halves.forward, halves.backward), halves.spliced)
    return replace(halves, forward=forward, backward=backward)


def calls(gm: fx.GraphModule) -> list[str]:
    """The names of the functions of codes that are called, in order."""
    return [
        str(n.args[1])
        for n in gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
        if not str(n.args[1]).startswith("arithmetic")
    ]


def inlined_calls(gm: fx.GraphModule) -> list[str]:
    """The names of the functions called that Inductor inlines, in order."""
    return [n.args[0].target for n in gm.graph.nodes if op_name(n) == "inlined"]


class Rectified(nn.Module):
    """Layers that are alike: a threshold code before each ReLU, whose value and decision backward reads."""

    def __init__(self) -> None:
        super().__init__()
        layers = ((nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(4))
        self.layers = nn.Sequential(*(layer for group in layers for layer in group))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_decoders_that_are_fused_are_inlined() -> None:
    for model, x in ((Perceptrons(), torch.randn(32, 64)), (Rectified(), torch.randn(4, 16, 16, 16))):
        joint = traced(model, x)
        halves = joint.split(bits=4)
        found = outlined(halves)
        assert len(inlined_calls(found.backward)) >= 3
        assert set(inlined_calls(found.backward)) == {"decoded_0"}
        assert joint.step(found).same_as(joint.step(halves))


def test_codes_of_one_shape_are_one_function() -> None:
    joint = traced(Perceptrons(), torch.randn(32, 64))
    halves = joint.split(bits=8)
    before = [op_name(n) for n in halves.forward.graph.nodes]
    found = outlined(halves)
    assert calls(found.forward) == ["encode_0"] * 4
    assert len(found.forward.graph.nodes) < len(before) / 4
    order = [op_name(n) for n in found.forward.graph.nodes if op_name(n) in ("aten.addmm", "invoke_subgraph")]
    assert order == ["aten.addmm", "invoke_subgraph"] * 4, "a value may die as soon as its code is there"
    assert [op_name(n) for n in halves.forward.graph.nodes] == before, "the graph given is another one's, too"
    assert [n.name for n in found.forward.graph.find_nodes(op="placeholder")] == [
        n.name for n in halves.forward.graph.find_nodes(op="placeholder")
    ]
    saved, expected = (next(iter(gm.graph.find_nodes(op="output"))).args[0] for gm in (found.forward, halves.forward))
    assert [n.name for n in saved] == [n.name for n in expected]  # type: ignore[union-attr]
    assert joint.step(found).same_as(joint.step(halves))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("gpt2", 2),
        ("mlp_dropout", 4),
        *(pytest.param(*case, marks=pytest.mark.long) for case in [("llama", 8), ("bert", 4)]),
    ],
)
def test_no_bit_changes(name: str, bits: int) -> None:
    case = MODELS[name]()
    joint = traced(case.model, *case.args)
    for checkpoint in (None, 3):
        halves = joint.split(bits=bits, checkpoint=checkpoint)
        assert joint.step(outlined(halves)).same_as(joint.step(halves))


def test_decoders_that_products_alone_read() -> None:
    """Queries, keys and values are decoded for products; what GELU's derivative reads stays beside it."""
    joint = traced(Attention(), torch.randn(4, 16, 32))
    halves = joint.split(bits=8)
    found = outlined(halves)
    assert calls(found.backward)
    assert joint.step(found).same_as(joint.step(halves))
    joint = traced(Perceptrons(), torch.randn(32, 64))
    assert not calls(outlined(joint.split(bits=8)).backward)


def test_one_code_of_a_kind_stays_where_it_is() -> None:
    layers = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 1))
    halves = traced(layers, torch.randn(32, 64)).split(bits=8)  # 32 groups and 64
    found = outlined(halves)
    assert found.forward is halves.forward
    assert not calls(found.backward)
    assert not inlined_calls(found.backward)


def test_low_precision_is_read_from_memory_only_where_it_is_there() -> None:
    """Inductor does not round what it fuses: a code of the rounded value would be another one."""
    low = traced(Perceptrons(torch.bfloat16), torch.randn(32, 64, dtype=torch.bfloat16)).split(bits=8)
    assert len(calls(outlined(low).forward)) == 4, "products are in memory"

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.ones(64, dtype=torch.bfloat16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.weights:
                x = nn.functional.gelu(x * weight + 0.1)
            return x

    assert not calls(outlined(traced(Chain(), torch.randn(32, 64, dtype=torch.bfloat16)).split(bits=8)).forward)


def test_encoders_of_channels_last_images_are_inlined() -> None:
    joint = traced(Rectified(), torch.randn(4, 16, 16, 16))
    halves = joint.split(bits=4)
    found = outlined(halves)
    assert not calls(found.forward)
    assert len(inlined_calls(found.forward)) >= 3
    assert len(set(inlined_calls(found.forward))) <= 2
    assert len(found.forward.graph.nodes) < len(halves.forward.graph.nodes)
    assert joint.step(found).same_as(joint.step(halves))


def test_little_is_passed_between_the_parts_of_an_encoder() -> None:
    """A value is computed in the part that reads it: one part makes the codes, the other packs them."""
    halves = traced(Rectified(), torch.randn(4, 16, 16, 16)).split(bits=4)
    parts = [node for node in outlined(halves).forward.graph.nodes if op_name(node) == "inlined"]
    assert len(parts) == 2 * 4
    assert all(len(part.users) == 1 for part in parts)


def test_symbolic_sizes_stay() -> None:
    report = fxapprox.explain(Perceptrons(), torch.randn(32, 64), bits=8, min_bytes=0, dynamic=True)
    assert report.forward is not None
    assert report.backward is not None
    assert (
        inline_codes(*call_codes(report.forward, report.backward, report.spliced), report.spliced)[0] is report.forward
    )


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Perceptrons, (32, 64)),
        (Rectified, (3, 16, 16, 16)),
        *(pytest.param(Rectified, (batch, 16, 16, 16), marks=pytest.mark.long) for batch in (1, 4)),
    ],
)
def test_compiled_by_inductor(network: type[nn.Module], shape: tuple[int, ...], one_thread: None) -> None:
    """The same loss and gradients with the calls and without; elements of odd batches share bytes along channels."""
    found = []
    for without in ((), [each.name for each in FOR_INDUCTOR]):
        torch.manual_seed(0)
        model, x = network(), torch.randn(shape)
        with fresh_cache(), leaving_out(*without):
            loss = fxapprox.compile(model, bits=4, min_bytes=0, dynamic=False)(x).square().mean()
            loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    (loss, gradients), (expected, others) = found
    assert torch.equal(loss, expected)
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.equal(gradient, other)  # type: ignore[arg-type]
