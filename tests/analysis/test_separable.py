"""separable: what is around a wide product and can be run slice by slice, and what cannot."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from fxapprox.analysis.separable import Region, Search, products, width_of
from fxapprox.ir.operators import op_name
from tests.passes.graphs import Traced, traced

ROWS, WIDTH, VOCABULARY = 512, 16, 512
TARGETS = torch.arange(ROWS) % VOCABULARY


class Head(nn.Module):
    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.loss = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY), loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.head(self.body(x)))


def forward_of(loss: Callable[[Tensor], Tensor]) -> Traced:
    return traced(Head(loss), torch.randn(ROWS, WIDTH))


def widest(loss: Callable[[Tensor], Tensor]) -> Region | None:
    """The part around the logits."""
    graph = forward_of(loss).split(bits=None, slices=None).forward.graph
    return next(Search(graph).regions([max(products(graph), key=width_of)]), None)


LOSSES = {
    "cross entropy": lambda z: nn.functional.cross_entropy(z, TARGETS),
    "smoothed": lambda z: nn.functional.cross_entropy(z, TARGETS, label_smoothing=0.1),
    "masked": lambda z: nn.functional.cross_entropy(z, TARGETS, ignore_index=3),
    "z-regularized": lambda z: nn.functional.cross_entropy(z, TARGETS) + 1e-3 * z.logsumexp(-1).square().mean(),
    "a divergence": lambda z: nn.functional.kl_div(
        z.log_softmax(-1), torch.full_like(z, 1 / VOCABULARY), reduction="batchmean"
    ),
    "a soft cap": lambda z: nn.functional.cross_entropy(30 * (z / 30).tanh(), TARGETS),
    "in words and sentences": lambda z: nn.functional.cross_entropy(z.view(8, -1, VOCABULARY).mT, TARGETS.view(8, -1)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_around_a_loss(loss: str) -> None:
    """From logits to the gradients that forward makes; nothing wide is left outside."""
    found = widest(LOSSES[loss])
    assert found is not None
    assert found.units == ROWS
    sums = [op_name(node) for node, along in found.inside.items() if along.dim is None]
    assert "aten.mm" in sums, "the weight's gradient"
    for node in found.inside:
        graph_readers = [user for user in node.users if user not in found.inside]
        if node in found.wide:
            assert not graph_readers


def test_a_slice_may_have_to_be_whole_sentences() -> None:
    found = widest(LOSSES["in words and sentences"])
    assert found is not None
    assert found.step in (1, ROWS // 8)
    assert all(along.per.denominator in (1, ROWS // 8) for along in found.inside.values())
    assert Fraction(1) in {along.per for along in found.inside.values()}


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: (z.softmax(-1) / z.softmax(-1).sum(0)).square().mean(),  # columns and rows
        lambda z: (z.exp().mean() * z).mean(),  # all rows have to be there before the first can go on
    ],
)
def test_what_needs_all_rows_is_left(loss: Callable[[Tensor], Tensor]) -> None:
    found = widest(loss)
    whole = set() if found is None else {node for node in found.inside if node in found.wide}
    assert len(whole) <= 3


class Layer(nn.Module):
    """A transformer's layer, whose sums of residuals are narrow beside what is inside of its MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))


def test_layers_are_apart() -> None:
    """A part ends where products make small values again, and where another one begins: each layer has its own."""
    model = nn.Sequential(Layer(), Layer())
    joint = traced(lambda x: model(x).square().mean(), torch.randn(8, 16, WIDTH))
    graph = joint.split(bits=4, slices=None).backward.graph
    seeds = sorted(products(graph), key=lambda node: -width_of(node).bit_length())
    found = [[op_name(node) for node in region.inside] for region in Search(graph).regions(seeds)]
    attention = "aten._scaled_dot_product_flash_attention_for_cpu_backward"
    assert sum(attention in operators for operators in found) == 2
    assert all(operators.count(attention) <= 1 for operators in found)
    gelus = [operators.count("aten.erf") for operators in found if attention not in operators]
    assert max(gelus) <= 1
