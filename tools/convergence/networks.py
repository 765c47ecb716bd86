"""The networks of the tasks; those that the zoo or the demonstration has come from there."""

from __future__ import annotations

from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from tools.convergence.task import Place, Task
from tools.convergence.train import trained
from tools.harness import write_atomically
from tools.zoo.models import GPT, GPTBlock
from tools.zoo.models.language import LoRA

BYTES = 256
DROPOUT = 0.1
RANK = 8


class Residual(nn.Module):
    """Two layers of BN, ReLU and convolution beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        pairs = ((nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)) for _ in "12")
        self.layers = nn.Sequential(*chain.from_iterable(pairs))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class DigitsNet(nn.Module):
    """A pre-activation net: images (N, 1, 8, 8) to scores of ten classes."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        last = nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10)
        self.head = nn.Sequential(*last)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def normed_mlp(inputs: int, width: int = 256, layers: int = 3) -> nn.Module:
    """Linear, LayerNorm, ReLU, so many times, and scores of ten classes."""
    sizes = pairwise((inputs, *(width,) * layers))
    hidden = ((nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()) for a, b in sizes)
    return nn.Sequential(*chain.from_iterable(hidden), nn.Linear(width, 10))


class Scores(nn.Module):
    """The zoo's GPT with dropout behind the embedding and in every branch: tokens (N, T) to scores (N, T, vocab)."""

    def __init__(self, layers: int, width: int, heads: int, sequence: int, vocab: int = BYTES) -> None:
        super().__init__()
        gpt = GPT(layers, width, heads, sequence, vocab)
        self.tokens, self.positions, self.blocks = gpt.tokens, gpt.positions, gpt.blocks
        self.norm, self.head, self.dropout = gpt.norm, gpt.head, nn.Dropout(DROPOUT)
        for block in self.blocks:
            assert isinstance(block, GPTBlock)
            block.add_module("proj", nn.Sequential(block.proj, nn.Dropout(DROPOUT)))
            block.mlp.append(nn.Dropout(DROPOUT))

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.dropout(self.tokens(tokens) + self.positions(positions)))))


def with_adapters(network: Scores) -> Scores:
    """A language model, frozen, with adapters beside the linear layers of its blocks, which start at zero."""
    network.requires_grad_(False)
    for parent in list(network.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                adapter = LoRA(child, RANK)
                nn.init.zeros_(adapter.up.weight)
                setattr(parent, name, adapter)
    return network


def adapted(base: Task, place: Place) -> Scores:
    """The network of a task, trained on that once and kept, with adapters of the current seed."""
    seed = torch.initial_seed()
    path = place.out / f"base-{base.data(place).digest}-{base.steps}.pt"
    if not path.exists():
        state = trained(base, place).state_dict()
        write_atomically(path, lambda temporary: torch.save(state, temporary))
    network = base.network(place)
    assert isinstance(network, Scores)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    torch.manual_seed(seed)  # whether it was trained just now or not
    return with_adapters(network)
