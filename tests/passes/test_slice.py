"""slice: what is around a wide product runs slice by slice, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.ir.operators import op_name
from fxapprox.measure.memory import peak_bytes
from fxapprox.passes import slice as pass_
from fxapprox.passes.rewrite import for_inductor
from tests.analysis.test_separable import LOSSES, ROWS, WIDTH, Head, forward_of
from tests.passes.graphs import Traced, traced

VOCABULARY, TOKENS = 512, 512
Loss = Callable[[Tensor], Tensor]


def close(joint: Traced, bits: int | None, same: bool = True, **tolerance: float) -> None:
    """Outputs bit for bit, gradients but for the order of sums; in several numbers of slices, uneven ones too."""
    whole = joint.step(joint.split(bits=bits, slices=None))
    for count in (2, 3, 8):
        halves = joint.split(bits=bits, slices=count)
        assert halves.slices
        found = joint.step(halves)
        for a, b in zip(found.outputs, whole.outputs, strict=True):
            assert torch.equal(a, b) if same else torch.allclose(a, b)
        for a, b in zip(found.gradients, whole.gradients, strict=True):
            torch.testing.assert_close(a, b, **({"rtol": 1e-4, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: str) -> None:
    """A divergence is one sum over all elements, not of rows."""
    close(forward_of(LOSSES[loss]), None, same=loss != "a divergence")


class Convolutions(nn.Module):
    """Images through convolutions, of which some gate each image's channels, some have weights that are computed."""

    def __init__(self, *, gated: bool = False, normed: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        if normed:
            self.first = nn.utils.parametrizations.weight_norm(self.first)
        self.gate = nn.Conv2d(16, 16, 1) if gated else None
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.first(x))
        if self.gate is not None:
            hidden = hidden * self.gate(hidden.mean((2, 3), keepdim=True)).sigmoid()
        return self.last(hidden).square().mean()


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("options", [{}, {"gated": True}, {"normed": True}], ids=str)
def test_convolutions(options: dict[str, Any], bits: int | None) -> None:
    """Where a gradient runs through a convolution of few pixels; where a weight is not read but for its shape."""
    close(traced(Convolutions(**options), torch.randn(8, 3, 16, 16)), bits, same=False)


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


class Language(nn.Module):
    """A head that may be the embedding, with adapters of low rank, in the type given; returns logits as well."""

    def __init__(self, *, tied: bool = False, rank: int = 0, returned: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.low = nn.ModuleList()
        if rank:
            self.low.extend([nn.Linear(WIDTH, rank, bias=False), nn.Linear(rank, VOCABULARY, bias=False)])
        self.head.weight.requires_grad_(not rank)
        self.returned = returned

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        hidden = self.embedding(tokens).tanh()
        logits = self.head(hidden)
        if len(self.low):
            logits = logits + self.low[1](self.low[0](hidden))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return (loss, logits) if self.returned else loss


def batch(sentences: int = 4) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(TOKENS).view(sentences, -1) % VOCABULARY
    return tokens, tokens.roll(-1, 1)


@pytest.mark.parametrize("sentences", [1, 4])
@pytest.mark.parametrize("options", [{}, {"tied": True}, {"rank": 4}], ids=str)
def test_heads(options: dict[str, Any], sentences: int) -> None:
    close(traced(Language(**options), *batch(sentences)), None)


def test_bfloat16_sums_are_kept_in_float32() -> None:
    joint = traced(Language().bfloat16(), *batch())
    close(joint, None, rtol=2e-2, atol=1e-4)
    halves = joint.split(bits=None, slices=4)
    sums = [
        n for n in halves.forward.graph.nodes if op_name(n) == "getitem" and n.meta["val"].shape == (VOCABULARY, WIDTH)
    ]
    assert sums
    assert all(node.meta["val"].dtype == torch.float32 for node in sums)


def test_codes_and_names_stay() -> None:
    """With codes: the same parts are saved under the same names."""
    joint = traced(Language(), *batch())
    whole, sliced = joint.split(bits=8, slices=None), joint.split(bits=8, slices=4)
    saved = [[n.name for n in halves.forward.graph.find_nodes(op="output")[0].args[0]] for halves in (whole, sliced)]
    assert saved[0] == saved[1]
    assert joint.step(sliced).stored == joint.step(whole).stored
    (part,) = sliced.slices
    assert len(part.names) == 4
    assert part.rows == TOKENS // 4
    assert part.wide_bytes >= 2 * 4 * TOKENS * VOCABULARY


def test_each_operator_runs_once_for_each_row() -> None:
    joint = traced(Language(), *batch())
    graph = joint.split(bits=None, slices=4).forward.graph
    exponentials = [node.meta["val"].shape for node in graph.nodes if op_name(node) == "aten.exp"]
    assert sum(shape[0] for shape in exponentials) % TOKENS == 0
    assert all(shape[0] == TOKENS // 4 for shape in exponentials)


def test_logits_that_are_returned_stay_whole() -> None:
    close(traced(Language(returned=True), *batch()), None, atol=1e-5)


def test_small_parts_are_left_alone() -> None:
    assert not traced(Language(), *batch()).split(bits=None).slices, "auto: calls would cost more"


def test_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the predicted peak falls by a tenth, in slices that are large enough."""
    monkeypatch.setattr(pass_, "SMALLEST", 2**18)
    monkeypatch.setattr(pass_, "SLICE", 2**17)
    joint = traced(Language(), *batch())
    halves = joint.split(bits=None)
    (part,) = halves.slices
    assert part.rows == 64
    assert len(part.names) == 8, "of 64 rows, not fewer"
    monkeypatch.setattr(pass_, "WORTH", 0)
    assert not joint.split(bits=None).slices


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"rank": 4}], ids=str)
def test_slices_of_one_size_are_calls_of_one_function(options: dict[str, Any]) -> None:
    joint = traced(Language(**options), *batch())
    halves = joint.split(bits=None, slices=4)
    forward, backward = for_inductor(halves.joint, (halves.forward, halves.backward), (), halves.slices)
    calls = forward.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
    sliced = [call for call in calls if str(call.args[1]).startswith("slice")]
    assert len(sliced) == 4
    assert len({call.args[1] for call in sliced}) == 1
    assert joint.step(replace(halves, forward=forward, backward=backward)).same_as(joint.step(halves))


def test_the_report_says_so() -> None:
    tokens, targets = batch()
    report = fxapprox.explain(Language(), tokens, targets, bits=8, min_bytes=0, slices=4)
    assert "in 4 slices of 128 rows; " in str(report)
    assert "slices" not in str(fxapprox.explain(Language(), tokens, targets, bits=8, min_bytes=0))


@pytest.mark.inductor
@pytest.mark.parametrize("bits", [None, 4])
def test_compiled_by_inductor(bits: int | None, one_thread: None) -> None:
    """The same loss; the allocator's peak is near what the gradients take, and the prediction near that."""
    torch.manual_seed(0)
    model = Head(lambda z: nn.functional.cross_entropy(z, torch.arange(len(z))))
    x = torch.randn(4 * ROWS, WIDTH)
    model.head = nn.Linear(WIDTH, 4 * ROWS)
    found = {}
    for slices in (None, 16):
        torch._dynamo.reset()
        compiled = fxapprox.compile(model, bits=bits, slices=slices, min_bytes=0, dynamic=False)

        def step(compiled: Any = compiled) -> Tensor:
            model.zero_grad()
            loss = compiled(x)
            loss.backward()
            return loss.detach()

        step()
        peak = peak_bytes(step)
        found[slices] = peak.result, peak.peak, [p.grad.clone() for p in model.parameters()]
    assert torch.equal(found[None][0], found[16][0]) or torch.allclose(found[None][0], found[16][0], rtol=1e-6)
    assert found[16][1] < 0.25 * found[None][1]
    for a, b in zip(found[None][2], found[16][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
