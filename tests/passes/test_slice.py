"""slice: what is around a wide product runs slice by slice, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.measure.memory import peak_bytes
from fxapprox.memory.timeline import timeline
from fxapprox.passes import slice as pass_
from fxapprox.passes.rewrite import for_inductor
from tests.analysis.test_separable import LOSSES, ROWS, WIDTH, Head, Layer, forward_of
from tests.passes.graphs import Traced, traced
from tools.zoo.models import unet

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


class Cast(nn.Module):
    """The loss of logits that are cast before they are rows, as transformers' losses do."""

    def __init__(self, inner: Language) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.inner.head(self.inner.embedding(tokens).tanh()).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(sentences: int = 4) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(TOKENS).view(sentences, -1) % VOCABULARY
    return tokens, tokens.roll(-1, 1)


@pytest.mark.parametrize("sentences", [1, 4])
@pytest.mark.parametrize("options", [{}, {"tied": True}, {"rank": 4}], ids=str)
def test_heads(options: dict[str, Any], sentences: int) -> None:
    close(traced(Language(**options), *batch(sentences)), None)


def test_sentences_are_cut_where_logits_are_cast_between_views() -> None:
    """A cast of (sentence, time, word) stands between two views of rows; there are more slices than sentences."""
    model = Language().to(torch.bfloat16)
    joint = traced(Cast(model), *batch(2))
    parts = joint.split(bits=None, slices=8).slices
    assert {len(part.names) for part in parts} == {8}
    close(joint, None, rtol=0.05, atol=1e-3)


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


def test_both_halves_of_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as wide as logits: these are made again in backward; forward's stand in one loop with the loss."""
    monkeypatch.setattr(pass_, "SMALLEST", 2**16)
    monkeypatch.setattr(pass_, "SLICE", 2**16)
    body, head, targets = nn.Linear(32, 64), nn.Linear(64, VOCABULARY), torch.arange(TOKENS)
    joint = traced(lambda x: nn.functional.cross_entropy(head(body(x)), targets), torch.randn(TOKENS, 32))
    first, second = joint.split(bits=4, slices="auto", lowering="inductor").slices
    assert (first.half, second.half) == ("forward", "backward")
    assert len(first.names) < len(second.names), "forward's are as few as do not raise the peak of backward"
    monkeypatch.setattr(pass_, "SPARE", 0)
    assert len(first.names) < len(joint.split(bits=4, slices="auto", lowering="inductor").slices[0].names)


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


@pytest.mark.parametrize("name", ["language", "layers", "images"])
def test_a_few_slices_show_what_is_alive(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is predicted from the first two slices of a part and the last: with all of them it is the same."""
    monkeypatch.setattr(pass_, "SMALLEST", 2**14)
    monkeypatch.setattr(pass_, "SLICE", 2**12)
    peaks, write = list[list[int]](), pass_._written
    given: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "language": (Language(), batch()),
        "layers": (nn.Sequential(Layer(), Layer()), (torch.randn(8, 64, WIDTH),)),
        "images": (Blocks(nn.BatchNorm2d), (torch.randn(16, 3, 32, 32),)),
    }
    model, args = given[name]
    joint = traced(model, *args)

    def written(halves: Any, images: Any, in_place: bool, cuts: Any, samples: Any = None) -> Any:
        both = [write(halves, images, in_place, cuts, each) for each in ({}, None)]
        lines = [timeline(*made[:2], num_fwd_outputs=joint.outputs, slices=made[2]) for made in both]
        peaks.append([line.peak({}) for line in lines])
        return write(halves, images, in_place, cuts, samples)

    monkeypatch.setattr(pass_, "_written", written)
    joint.split(bits=4, slices="auto", lowering="inductor")
    assert peaks
    assert all(few == every for few, every in peaks)


class Blocks(nn.Module):
    """Images: convolutions, each with a normalization and a decision before it, and a residual sum."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList([norm(width) for _ in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = h + conv(norm(h).relu())
        return h.square().mean()


class Perceptron(nn.Module):
    """A layer wider than its input, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(16, 256), nn.Linear(16, 256), nn.Linear(256, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x)).square().mean()


IMAGES = torch.randn(16, 3, 16, 16)
BACKWARD: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "norms over the batch": (lambda: Blocks(nn.BatchNorm2d), IMAGES),
    "norms of an image": (lambda: Blocks(lambda width: nn.GroupNorm(2, width)), IMAGES),
    "a U-Net": (lambda: unet(batch=1, width=8, levels=2).model, IMAGES),
    "a gated layer": (Perceptron, torch.randn(512, 16)),
}


@pytest.mark.parametrize("bits", [None, 4, 2])
@pytest.mark.parametrize("name", BACKWARD)
def test_backward(name: str, bits: int | None) -> None:
    """Convolutions and wide layers from codes: decoded and differentiated a slice at a time."""
    make, x = BACKWARD[name]
    joint = traced(nn.Sequential(make()), x)
    close(joint, bits, same=name != "a gated layer", rtol=1e-3, atol=1e-4)
    assert any(part.half == "backward" for part in joint.split(bits=bits, slices=2).slices)


def test_what_is_decoded_is_never_whole() -> None:
    model, x = Blocks(nn.BatchNorm2d), torch.randn(16, 3, 32, 32)
    joint = traced(model, x)

    def decoded(slices: int | None) -> int:
        """Images made of codes alone that convolutions' gradients read whole."""
        graph = joint.split(bits=4, slices=slices).backward.graph
        calls = graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
        return max(call.args[1].meta["val"].shape[0] for call in calls if call.args[1].op == "call_function")

    assert decoded(None) == 16
    assert decoded(4) == 4


def test_rows_that_share_bytes_stay_together() -> None:
    """At 2 bits four images share a byte: a slice has four, or eight, of sixteen."""
    joint = traced(Blocks(nn.BatchNorm2d), IMAGES)
    whole = joint.step(joint.split(bits=2, slices=None))
    halves = joint.split(bits=2, slices=16)
    found = joint.step(halves)
    for a, b in zip(found.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert all(len(part.names) <= 4 for part in halves.slices if part.half == "backward" and len(part.operators) > 20)


def test_where_the_pass_fails_the_graph_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("three is not two")

    joint = traced(Blocks(nn.BatchNorm2d), IMAGES)
    monkeypatch.setattr(pass_, "Search", fail)
    with pytest.warns(UserWarning, match="leaves out 'slice' for this graph: .*three is not two"):
        halves = joint.split(bits=4, slices=2, strict=False)
    assert not halves.slices
    assert halves.parts, "and the codes stay"
    with pytest.raises(fxapprox.errors.FxApproxError, match="three is not two"):
        joint.split(bits=4, slices=2, strict=True)


@pytest.mark.inductor
def test_backward_compiled_by_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are those without slices: functions, called again and again, leave what they are given alone."""
    monkeypatch.setattr(pass_, "SMALLEST", 2**18)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1))
    for _ in range(3):
        model.extend([nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)])
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)])
    x = torch.randn(32, 3, 32, 32)
    found = {}
    for slices in (None, "auto"):
        torch._dynamo.reset()
        compiled = fxapprox.compile(model, bits=4, slices=slices, min_bytes=0, dynamic=False)

        def step(compiled: Any = compiled) -> None:
            model.zero_grad()
            nn.functional.cross_entropy(compiled(x), torch.zeros(32, dtype=torch.int64)).backward()

        step()
        found[slices] = peak_bytes(step).peak, [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert found["auto"][0] < 0.95 * found[None][0]
    largest = max(float(g.norm()) for g in found[None][1])
    for a, b in zip(found["auto"][1], found[None][1], strict=True):
        assert float((a - b).norm()) < 1e-3 * float(b.norm()) + 1e-6 * largest


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
