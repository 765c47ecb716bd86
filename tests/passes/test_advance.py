"""advance: no product runs twice and no logits are kept for a loss's gradient; the gradients are the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.ir.joint import Joint
from fxapprox.ir.operator_table import TABLE
from fxapprox.ir.operators import operator_of
from fxapprox.measure.memory import stored_bytes
from fxapprox.passes.advance import advance
from fxapprox.passes.pipeline import leaving_out
from fxapprox.passes.rewrite import Rewrite
from tests.passes.graphs import Traced, traced

VOCABULARY, WIDTH, TOKENS = 256, 16, 512

Loss = Callable[[Tensor, Tensor], Tensor]


class LanguageModel(nn.Module):
    """An embedding, a layer, a head over a vocabulary, and the loss of its logits."""

    def __init__(self, loss: Loss = F.cross_entropy, vocabulary: int = VOCABULARY, bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.layer, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=bias)
        self.loss = loss

    def logits(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(F.gelu(self.layer(self.embedding(tokens)))))

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        return self.loss(self.logits(tokens).flatten(0, -2), targets.flatten())


def batch(vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(vocabulary, (4, TOKENS // 4))
    return tokens, tokens.roll(-1, 1)


def as_traced(model: nn.Module, *args: Any) -> Traced:
    """The joint graph of a model before gradients are moved."""
    with leaving_out("advance"):
        return traced(model, *args)


def products(graph: fx.GraphModule) -> int:
    return sum(bool(operator_of(node).factors) for node in graph.graph.nodes)


def moved(joint: Traced) -> frozenset[str]:
    return advance(Joint(joint.gm, joint.outputs)).gradients


def same_gradients(joint: Traced, halves: Rewrite, tangent: float) -> bool:
    """Whether the two halves give the bits that the joint graph gives."""
    expected = joint.gm(*joint.inputs, torch.tensor(tangent))
    returned = halves.forward(*joint.inputs)
    outputs, saved = returned[: joint.outputs], returned[joint.outputs :]
    gradients = halves.backward(*saved, torch.tensor(tangent))
    pairs = zip((*outputs, *gradients), expected, strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def z_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets) + 1e-3 * logits.logsumexp(-1).square().mean()


def shifted(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits[:-1], targets[1:])


def squares(logits: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(logits, F.one_hot(targets, VOCABULARY).float())


def binary(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(targets, VOCABULARY).float())


def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, label_smoothing=0.1)


def ignoring(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.where(targets % 3 == 0, -100, targets))


def capped(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(30 * torch.tanh(logits / 30), targets)


LOSSES = [F.cross_entropy, z_loss, shifted, squares, binary, smoothed, ignoring, capped]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_the_same_bits(loss: Loss, bias: bool) -> None:
    joint = as_traced(LanguageModel(loss, bias=bias), *batch())
    assert moved(joint)
    halves = joint.split(bits=None)
    assert products(halves.forward) + products(halves.backward) == products(joint.gm)  # nothing is multiplied twice
    assert same_gradients(joint, halves, 1.0)
    assert same_gradients(joint, halves, 0.25)


def test_other_tangents_round_once_more() -> None:
    joint = as_traced(LanguageModel(), *batch())
    halves = joint.split(bits=None)
    given = torch.tensor(0.3)
    expected = joint.gm(*joint.inputs, given)[joint.outputs :]
    found = halves.backward(*halves.forward(*joint.inputs)[joint.outputs :], given)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 4])
def test_neither_logits_nor_hidden_state_are_stored(bits: int) -> None:
    joint = as_traced(LanguageModel(), *batch())
    halves = joint.split(bits=bits)
    kept = {entry.name: entry for entry in halves.plan.stored}
    gradients = halves.joint.gradients & kept.keys()
    assert len(gradients) == 2  # of the hidden state, and of the head's weight
    assert {kept[name].codec.label for name in gradients} == {"exact"}
    sizes = [n.meta["val"].numel() for n in halves.joint.gm.graph.nodes if n.name in kept]
    assert max(sizes) < VOCABULARY * TOKENS
    assert not same_gradients(joint, halves, 1.0)  # the layer below is in a code


@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_gradient_is_named_and_counted_as_stored(tied: bool) -> None:
    model = LanguageModel()
    if tied:
        model.head.weight = model.embedding.weight
    compiled = fxapprox.compile(model, bits=8, lowering="eager", min_bytes=0, strict=True)
    given = batch()
    loss = compiled(*given)
    (report,) = fxapprox.reports(compiled)
    (gradient,) = report.gradients
    assert gradient.shape == (VOCABULARY, WIDTH)
    assert report.early_gradient_bytes == gradient.bytes_after == 4 * VOCABULARY * WIDTH
    assert gradient in report.decisions
    assert stored_bytes(loss, exclude=[*model.parameters(), *given]) == report.saved_bytes
    assert "of that 16.0 KiB in a gradient that forward computes" in str(report)


def test_the_graph_given_is_untouched() -> None:
    joint = as_traced(LanguageModel(), *batch())
    before = str(joint.gm.graph)
    found = advance(Joint(joint.gm, joint.outputs))
    found.gm.graph.lint()
    assert str(joint.gm.graph) == before != str(found.gm.graph)
    assert advance(found) is found  # there is nothing left to move


class Returns(LanguageModel):
    """Returns its logits, too: a gradient of theirs may come in."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        logits = self.logits(tokens)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits


class TwoLosses(LanguageModel):
    """Two losses of the same logits, each with a gradient of its own."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        logits = self.logits(tokens).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten()), logits.square().mean()


class OneByOne(LanguageModel):
    """A loss for each token."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten(), reduction="none")


@pytest.mark.parametrize("model", [Returns, TwoLosses, OneByOne])
def test_what_depends_on_other_gradients_stays(model: type[nn.Module]) -> None:
    joint = as_traced(model(), *batch())
    assert not moved(joint)


def test_a_narrow_head_stays() -> None:
    assert not moved(as_traced(LanguageModel(vocabulary=4 * WIDTH), *batch(4 * WIDTH)))


def test_a_weight_larger_than_the_logits_stays() -> None:
    tokens, targets = batch()
    assert not moved(as_traced(LanguageModel(), tokens[:, :2], targets[:, :2]))


def test_float16_stays_because_a_scaler_has_to_come_first() -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets)

    assert not moved(as_traced(LanguageModel(loss).half(), *batch()))
    assert moved(as_traced(LanguageModel(loss).bfloat16(), *batch()))


class HeadInTheMiddle(LanguageModel):
    """A second head, whose loss is added, below layers that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(WIDTH, WIDTH), nn.GELU())))

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        hidden = self.norm(F.gelu(self.layer(self.embedding(tokens))))
        early = F.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten())
        return early + self.tower(hidden).square().mean()


@pytest.mark.parametrize("options", [{}, {"checkpoint": 3}, {"checkpoint": "sqrt"}])
def test_a_segment_does_not_compute_gradients_again(options: dict[str, Any]) -> None:
    joint = as_traced(HeadInTheMiddle(), *batch())
    halves = joint.split(bits=None, **options)
    assert moved(joint)
    assert options.get("checkpoint") != 3 or halves.segments
    assert not any(name.endswith("_ahead") for segment in halves.segments for name in segment.recomputed)
    assert same_gradients(joint, halves, 1.0)


class Checkpointed(LanguageModel):
    """The user checkpoints head and loss: logits would be computed again in backward."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Any:
        hidden = F.gelu(self.layer(self.embedding(tokens)))

        def end(hidden: Tensor) -> Tensor:
            return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), targets.flatten())

        return checkpoint(end, hidden, use_reentrant=False)


def test_in_a_region_that_the_user_checkpoints() -> None:
    """Plain torch.compile stores less there than the gradients would take."""
    joint = as_traced(Checkpointed(), *batch())
    assert not moved(joint)
    assert same_gradients(joint, joint.split(bits=None), 1.0)


def test_dynamic_sizes() -> None:
    model = LanguageModel()
    compiled = torch.compile(model, backend="fxapprox", options={"bits": None, "lowering": "eager"}, dynamic=True)
    for count in (64, 48, 80):
        tokens, targets = torch.randint(VOCABULARY, (2, 1, count))
        found = torch.autograd.grad(compiled(tokens, targets), list(model.parameters()))
        expected = torch.autograd.grad(model(tokens, targets), list(model.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_tied_head() -> None:
    model = LanguageModel()
    model.head.weight = model.embedding.weight
    compiled = torch.compile(model, backend="fxapprox", options={"bits": None, "lowering": "eager"})
    given = batch()
    found = torch.autograd.grad(compiled(*given), list(model.parameters()))
    expected = torch.autograd.grad(model(*given), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# --- the table -----------------------------------------------------------------------------------

G, X = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
ROWS = torch.tensor([2, 0, 1])
aten = torch.ops.aten
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "aten.mm": lambda g: aten.mm(g, X.T),
    "aten.bmm": lambda g: aten.bmm(X.T[None], g[None]),
    "aten.neg": aten.neg,
    "aten.sum": lambda g: aten.sum(g, [1], True),
    "aten.mean": lambda g: aten.mean(g, [0]),
    "aten.div": lambda g: aten.div(g, X),
    "aten.clone": aten.clone,
    "prims.convert_element_type": lambda g: torch.ops.prims.convert_element_type(g, torch.float32),
    "aten.slice_backward": lambda g: aten.slice_backward(g, [4, 9], 1, 2, 8, 1),
    "aten.select_backward": lambda g: aten.select_backward(g, [4, 3, 6], 1, 2),
    "aten._log_softmax_backward_data": lambda g: aten._log_softmax_backward_data(g, X.log_softmax(1), 1, g.dtype),
    "aten._softmax_backward_data": lambda g: aten._softmax_backward_data(g, X.softmax(1), 1, g.dtype),
    "aten.threshold_backward": lambda g: aten.threshold_backward(g, X, 0),
    "aten.tanh_backward": lambda g: aten.tanh_backward(g, X.tanh()),
    "aten.sigmoid_backward": lambda g: aten.sigmoid_backward(g, X.sigmoid()),
    "aten.gelu_backward": lambda g: aten.gelu_backward(g, X),
    "aten.silu_backward": lambda g: aten.silu_backward(g, X),
    "aten.add": lambda g: aten.add(g, g.flip(0), alpha=3),
    "aten.sub": lambda g: aten.sub(0, g),
    "aten.where": lambda g: aten.where(X > 0, g, torch.zeros_like(g)),
    "aten.scatter": lambda g: aten.scatter(torch.zeros(4, 9, dtype=g.dtype), 1, torch.arange(6).expand(4, 6) + 2, g),
    "aten.index_put": lambda g: aten.index_put(torch.zeros(5, 6, dtype=g.dtype), [ROWS], g[:3], True),
    "aten.slice_scatter": lambda g: aten.slice_scatter(torch.zeros(4, 9, dtype=g.dtype), g, 1, 2, 8),
    "aten.select_scatter": lambda g: aten.select_scatter(torch.zeros(4, 3, 6, dtype=g.dtype), g, 1, 2),
}


LINEAR = [name for name, row in TABLE.items() if (row.linear_in and not row.view) or row.factors == (0, 1)]


@pytest.mark.parametrize("name", LINEAR)
def test_operators_are_as_linear_as_the_table_says(name: str) -> None:
    call = CALLS[name]
    assert torch.equal(call(4 * G), 4 * call(G))
    torch.testing.assert_close(call(G + X), call(G) + call(X))
    assert not call(torch.zeros_like(G)).any()
