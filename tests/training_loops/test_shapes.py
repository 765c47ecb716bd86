"""Other shapes than before: recompilation, dynamic sizes, a batch of one, of none, tensors without dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training_loops.beside import LOWERINGS, Compile, Seen, check, conv_net, mlp, slow, step


def steps_at(sizes: tuple[int, ...], **settings: object) -> object:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        run = compile(model, **settings)
        seen = [step(model, run, torch.randn(size, 32)) for size in sizes]
        return Seen([e for s in seen for e in s.exact], [c for s in seen for c in s.close])

    return loop


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_dynamic_after_the_second_shape(lowering: str) -> None:
    reports = check(steps_at((64, 80, 81, 128)), lowering=lowering)
    assert len(reports) == 2


@pytest.mark.slow
def test_dynamic_from_the_beginning() -> None:
    assert len(check(steps_at((64, 80, 3), dynamic=True))) == 1


@pytest.mark.slow
def test_never_dynamic() -> None:
    assert len(check(steps_at((64, 80, 81), dynamic=False))) == 3


@pytest.mark.parametrize("sizes", [(2, 1, 0), *slow((1,), (0,), (64, 0, 32), (2, 1, 3))])
def test_batches_of_one_and_none(sizes: tuple[int, ...]) -> None:
    check(steps_at(sizes))


@pytest.mark.slow
def test_images_of_other_sizes() -> None:
    def loop(compile: Compile) -> Seen:
        model = conv_net()[:6].append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(16, 4))
        run = compile(model)
        seen = [step(model, run, torch.randn(n, 3, h, w)) for n, h, w in ((8, 8, 8), (8, 12, 9), (6, 10, 14))]
        return Seen([e for s in seen for e in s.exact], [c for s in seen for c in s.close])

    check(loop)


class Sentences(nn.Module):
    """Attention over sentences of any length, with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(40, 64), nn.Embedding(64, 64)
        self.qkv, self.head = nn.Linear(64, 192), nn.Linear(64, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        q, k, v = self.qkv(h).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(F.gelu(h))


def test_sentences_of_other_lengths(one_thread: None) -> None:
    def loop(compile: Compile) -> Seen:
        model = Sentences()
        run = compile(model)
        seen = [step(model, run, torch.randint(40, (4, length))) for length in (32, 48)]
        return Seen([e for s in seen for e in s.exact], [c for s in seen for c in s.close])

    check(loop)
