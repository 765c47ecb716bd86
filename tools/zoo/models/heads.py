"""Losses over a vocabulary, each as people write it: heads that are tied, adapted or fused, and what follows them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, WIDTH, RANK = 4096, 128, 8


class Residual(nn.Module):
    """A wide layer beside what it is added to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Head(nn.Module):
    """A hidden state of tokens, and what a loss makes of its logits: tokens (N, T), int64, to a number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(Residual(WIDTH), Residual(WIDTH))
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.blocks(self.embedding(tokens))

    def logits(self, tokens: Tensor) -> Tensor:
        return self.output(self.hidden(tokens))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.loss(self.logits(tokens), tokens)


class Plain(Head):
    pass


class Returned(Head):
    """(loss, logits)."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.logits(tokens)
        return self.loss(logits, tokens), logits


class Tied(Head):
    def __init__(self) -> None:
        super().__init__()
        self.output.weight = self.embedding.weight


class Scaled(Head):
    """The embedding, transposed and scaled, for a head."""

    def logits(self, tokens: Tensor) -> Tensor:
        return self.hidden(tokens) @ (self.embedding.weight.t() * WIDTH**-0.5)


class Fused(Head):
    """The head is one part of a weight that serves two."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(WIDTH, 2 * VOCABULARY)

    def logits(self, tokens: Tensor) -> Tensor:
        weight, _ = self.output.weight.chunk(2)
        return F.linear(self.hidden(tokens), weight, self.output.bias[:VOCABULARY])


class Adapted(Head):
    """LoRA: a frozen head, and two narrow factors beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.output.weight.requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, VOCABULARY, bias=False)

    def logits(self, tokens: Tensor) -> Tensor:
        hidden = self.hidden(tokens)
        return self.output(hidden) + 2.0 * self.up(self.down(hidden))


class Merged(Adapted):
    """LoRA, the factors multiplied before the hidden state is."""

    def logits(self, tokens: Tensor) -> Tensor:
        return F.linear(self.hidden(tokens), self.output.weight + 2.0 * (self.up.weight @ self.down.weight))


class Smoothed(Head):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), label_smoothing=0.1)


class ZLoss(Head):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(logits, targets) + 1e-3 * logits.float().logsumexp(-1).square().mean()


class Shifted(Head):
    """The next token, and not for padding."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        wanted = torch.where(targets[:, 1:] % 5 == 0, -100, targets[:, 1:])
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten(), ignore_index=-100)


class Distilled(Head):
    """Kullback-Leibler divergence from a frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)).requires_grad_(
            False
        )

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.logits(tokens)
        with torch.no_grad():
            wanted = self.teacher(tokens)
        return F.kl_div(F.log_softmax(logits.float() / 2, -1), F.softmax(wanted.float() / 2, -1), reduction="batchmean")


class Preferred(Head):
    """DPO: how much likelier one sequence has become than another."""

    def forward(self, tokens: Tensor) -> Tensor:
        chosen, rejected = self._likelihood(tokens), self._likelihood(tokens.flip(1))
        return -F.logsigmoid(0.1 * (chosen - rejected)).mean()

    def _likelihood(self, tokens: Tensor) -> Tensor:
        logits = self.logits(tokens)[:, :-1].float()
        return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1).sum(-1)


class Binary(Head):
    """One decision for each word."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.float(), F.one_hot(targets, VOCABULARY).float())


class Capped(Head):
    """Logits capped by a tanh."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(30 * torch.tanh(logits / 30), targets)


HEADS: tuple[Callable[[], Head], ...] = (
    Plain, Returned, Tied, Scaled, Fused, Adapted, Merged, Smoothed, ZLoss, Shifted, Distilled, Preferred, Binary,
    Capped,
)  # fmt: skip


def tokens(batch: int = 2, length: int = 128) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(VOCABULARY, (batch, length))
