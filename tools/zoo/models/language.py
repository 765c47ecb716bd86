"""Language models as people wrap them: adapters, logits beside the loss, autocast, tied weights, blocks apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case, GPTBlock

VOCABULARY = 512


class Apart(nn.ModuleList):
    """Modules that are compiled each by itself, and not the model that they are in."""


class LM(nn.Module):
    """Tokens and targets (N, T) to loss and logits."""

    def __init__(self, width: int, *, blocks: nn.ModuleList | None = None, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.blocks = blocks or nn.ModuleList(GPTBlock(width, 2) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def logits(self, text: Tensor) -> Tensor:
        h = self.tokens(text)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def forward(self, text: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(text)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()), logits


def read(name: str, build: Callable[[], nn.Module], *, batch: int, seed: int, length: int = 32) -> Case:
    """A model of tokens and targets, whose output is its loss, or begins with it."""
    torch.manual_seed(seed)
    model, text = build().train(), torch.randint(VOCABULARY, (batch, length + 1))
    args = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    return Case(name, model, args, lambda out: out[0] if isinstance(out, tuple) else out)


def loss_and_logits(*, seed: int = 0, batch: int = 4) -> Case:
    """Logits are returned beside the loss, and dropped by the caller."""
    return read("loss_and_logits", lambda: LM(48), batch=batch, seed=seed)


def tied_weights(*, seed: int = 0, batch: int = 4) -> Case:
    """The embedding is the head's weight."""
    return read("tied_weights", lambda: LM(48, tied=True), batch=batch, seed=seed)


class Autocast(nn.Module):
    """float32 weights in bfloat16, whatever the caller does; the loss alone."""

    def __init__(self, inner: LM) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.inner.logits(text)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def autocast_lm(*, seed: int = 0, batch: int = 4) -> Case:
    """A region of autocast inside the model."""
    return read("autocast_lm", lambda: Autocast(LM(48)), batch=batch, seed=seed)


def autocast_tied(*, seed: int = 0, batch: int = 4) -> Case:
    """The same with tied weights, which are cast twice."""
    return read("autocast_tied", lambda: Autocast(LM(48, tied=True)), batch=batch, seed=seed)


def blocks_apart(*, seed: int = 0, batch: int = 4) -> Case:
    """Each block compiled by itself, the rest as it is."""
    return read("blocks_apart", lambda: LM(48, blocks=Apart(GPTBlock(48, 2) for _ in range(3))), batch=batch, seed=seed)


class LoRA(nn.Module):
    """A frozen linear layer plus a product of two narrow ones (Hu et al. 2022), of an input with dropout."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down, self.up = (
            nn.Linear(frozen.in_features, rank, bias=False),
            nn.Linear(rank, frozen.out_features, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + 2 * self.up(self.down(F.dropout(x, 0.05, self.training)))


class MergedLoRA(nn.Module):
    """The same with the product added to the weight: the sum of matrices is what multiplies."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) * 0.1)
        self.up = nn.Parameter(torch.randn(frozen.out_features, rank) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.frozen.weight + 2 * self.up @ self.down, self.frozen.bias)


def adapted(kind: type[LoRA] | type[MergedLoRA]) -> nn.Module:
    """A frozen language model whose linear layers have adapters, the head as well; norms are trained."""
    model = LM(48)
    model.tokens.requires_grad_(False)
    for block in model.blocks:
        block.qkv, block.proj = kind(block.qkv, 4), kind(block.proj, 4)
        block.mlp[0], block.mlp[2] = kind(block.mlp[0], 4), kind(block.mlp[2], 4)
    model.head = kind(model.head, 4)
    for part in model.modules():
        if isinstance(part, LoRA):
            nn.init.normal_(part.up.weight, std=0.1)  # at 0, as it starts, half of the gradients are 0
    return model


def lora(*, seed: int = 0, batch: int = 4) -> Case:
    """Adapters beside frozen layers."""
    return read("lora", lambda: adapted(LoRA), batch=batch, seed=seed)


def lora_merged(*, seed: int = 0, batch: int = 4) -> Case:
    """Adapters added to frozen weights."""
    return read("lora_merged", lambda: adapted(MergedLoRA), batch=batch, seed=seed)


class Routed(nn.Module):
    """All experts for every token, weighted by a softmax over its best two; the load is balanced."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count, self.norm, self.gate = count, nn.RMSNorm(width), nn.Linear(width, count, bias=False)
        self.enter = nn.Parameter(torch.randn(count, width, 2 * width) * width**-0.5)
        self.leave = nn.Parameter(torch.randn(count, 2 * width, width) * (2 * width) ** -0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.norm(x).flatten(0, 1)
        scores = self.gate(flat).float()
        best, chosen = scores.topk(2, dim=-1)
        weights = torch.zeros_like(scores).scatter(1, chosen, best.softmax(-1))
        hidden = F.gelu(torch.einsum("tc,ech->eth", flat, self.enter), approximate="tanh")
        out = torch.einsum("eth,ehc->etc", hidden, self.leave) * weights.T[:, :, None].to(flat.dtype)
        share = F.one_hot(chosen, self.count).float().sum(1).mean(0)
        balance = self.count * (share * scores.softmax(-1).mean(0)).sum()
        return x + out.sum(0).view_as(x), balance + 1e-3 * torch.logsumexp(scores, -1).square().mean()


class RoutedLM(nn.Module):
    """A language model of attention and experts, its losses added up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lm, self.experts = LM(width), nn.ModuleList(Routed(width, 4) for _ in range(2))

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        h, extra = self.lm.tokens(text), 0.0
        for block, experts in zip(self.lm.blocks, self.experts, strict=True):
            h, balance = experts(block(h))
            extra = extra + 0.01 * balance
        return F.cross_entropy(self.lm.head(self.lm.norm(h)).flatten(0, 1).float(), targets.flatten()) + extra


def routed_experts(*, seed: int = 0, batch: int = 2) -> Case:
    """A mixture of experts with its load balanced."""
    return read("routed_experts", lambda: RoutedLM(32), batch=batch, seed=seed)


BUILDERS: Sequence[Callable[..., Case]] = (
    loss_and_logits, tied_weights, autocast_lm, autocast_tied, blocks_apart, lora, lora_merged, routed_experts,
)  # fmt: skip
