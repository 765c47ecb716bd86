"""add rows: the gradient of a tied embedding is added to that of the head, in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import op_name
from fxapprox.measure.memory import peak_bytes
from fxapprox.passes import add_rows as pass_
from tests.passes.graphs import Traced, traced, written

WORDS, WIDTH = 64, 16


class Tied(nn.Module):
    """Its embedding is its head, in one place more if asked for; words with one number may have no gradient.

    Tokens that are less than zero count from the last word, where the weight is indexed by hand.
    """

    def __init__(
        self, words: int = WORDS, *, padding: int | None = None, twice: bool = False, by_hand: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, WIDTH, padding_idx=padding)
        self.twice, self.by_hand = twice, by_hand

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = (self.embedding.weight[tokens - 5] if self.by_hand else self.embedding(tokens)).tanh()
        if self.twice:
            hidden = hidden + self.embedding(tokens.flip(1)).sin()
        logits = hidden @ self.embedding.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(1, 1).flatten())


@pytest.fixture(autouse=True)
def _smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_, "SMALLEST", 0)


def tokens(words: int = WORDS) -> Tensor:
    return torch.randint(0, words, (4, 32), generator=torch.Generator().manual_seed(0))


def puts(graph: fx.Graph) -> list[str]:
    return [op_name(node) for node in graph.nodes if op_name(node) in pass_.PUTS]


def added(graph: fx.Graph) -> int:
    return sum(adapter.written_to(node) is not None for node in graph.nodes)


def close(joint: Traced, bits: int | None = None) -> fx.Graph:
    whole = joint.step(joint.split(bits=bits, slices=None, lowering="inductor"))
    halves = joint.split(bits=bits, lowering="inductor")
    found = joint.step(halves)
    assert all(map(torch.equal, found.outputs, whole.outputs))
    for a, b in zip(found.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    return halves.backward.graph


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("padding", [None, 0, 5])
def test_a_tied_embedding(padding: int | None, bits: int | None) -> None:
    """Words are met several times; those without a gradient get none from the embedding."""
    graph = close(traced(Tied(padding=padding), tokens()), bits)
    assert not puts(graph)
    assert added(graph) == 1


def test_a_weight_that_is_indexed_by_hand() -> None:
    graph = close(traced(Tied(by_hand=True), tokens()))
    assert not puts(graph)
    assert added(graph) == 1


@pytest.mark.parametrize(("accumulate", "count"), [(", True", 1), (", False", 0), ("", 0)])
def test_rows_that_replace_each_other_are_no_sum(accumulate: str, count: int) -> None:
    joint = written(f"""
        x: f32[8, 4]
        w: f32[4, 4]
        i: i32[6]
        v: f32[6, 4]
        a = aten.mm(x, w)
        z = aten.zeros_like(x)
        p = aten.index_put(z, [i], v{accumulate})
        s = aten.add.Tensor(a, p)
        return s | s
    """)
    assert pass_.add_rows(joint.gm) == count


def test_one_of_two_embeddings_of_the_weight() -> None:
    """What is added to is in memory already; the sum of two puts is not a product."""
    graph = close(traced(Tied(twice=True), tokens()))
    assert added(graph) + len(puts(graph)) == 2


@pytest.mark.parametrize("options", [{"lowering": "eager"}, {"lowering": "inductor", "slices": None}], ids=str)
def test_where_temporaries_are_left_alone(options: dict[str, str]) -> None:
    """Run one by one, the sum would be copied; without slices every bit is plain's."""
    graph = traced(Tied(), tokens()).split(bits=None, **options).backward.graph
    assert len(puts(graph)) == 1


def test_small_weights_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_, "SMALLEST", 4 * WORDS * WIDTH + 1)
    assert len(puts(traced(Tied(), tokens()).split(bits=None, lowering="inductor").backward.graph)) == 1


@pytest.mark.inductor
def test_compiled_by_inductor(one_thread: None) -> None:
    """The weight's gradient is there once less; its values are the same."""
    model, x, found = Tied(8192), tokens(8192), {}
    for slices in (None, "auto"):
        torch._dynamo.reset()
        compiled = fxapprox.compile(model, bits=8, slices=slices, min_bytes=0, dynamic=False)

        def step(compiled: object = compiled) -> None:
            model.zero_grad()
            compiled(x).backward()  # type: ignore[operator]

        step()
        grad = model.embedding.weight.grad
        assert grad is not None
        found[slices] = peak_bytes(step).peak, grad.clone()
    torch.testing.assert_close(found["auto"][1], found[None][1], rtol=1e-4, atol=1e-6)
    assert found["auto"][0] < found[None][0]
