"""What a task is: data, a network, and a recipe that trains it to a plateau."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WARM_UP = 0.05  # of all steps

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Place(NamedTuple):
    """Where data is found, and where what a task makes first may be kept."""

    data: Path
    out: Path


@dataclass(frozen=True)
class Data:
    """Inputs and targets, row by row.

    Attributes:
        train, valid: the first sizes of the two tensors are equal.
        digest: of what they were made of; runs on other data are never paired.
    """

    train: Batch
    valid: Batch
    digest: str


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Of scores (..., classes) and labels (...), in nats."""
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten())


def as_they_are(x: Tensor, y: Tensor, rng: torch.Generator) -> Batch:
    """Training batches without augmentation."""
    return x, y


def sgd(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """With momentum and weight decay, as residual networks are trained."""
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)


def adamw(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """With a little weight decay."""
    return torch.optim.AdamW(parameters, rate, weight_decay=0.05)


@dataclass(frozen=True)
class Task:
    """One row of the table of tasks.

    Attributes:
        about: in a line.
        data: reads it.
        network: from inputs to scores, with random weights from torch's global generator.
        rate: the highest learning rate; a short warm-up, then a cosine to 0.
        has: of "relu", "blocks" (the network's list of blocks has that name) and "attention": what some arms need.
        prepare: augments a training batch.
        seeds: how many, unless told otherwise.
        arms: those that are run; (): all that fit.
        large: for a GPU; run only if it is named.
    """

    about: str
    data: Callable[[Place], Data]
    network: Callable[[Place], nn.Module]
    batch: int
    steps: int
    rate: float
    has: frozenset[str] = frozenset()
    loss: Loss = cross_entropy
    optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer] = adamw
    prepare: Callable[[Tensor, Tensor, torch.Generator], Batch] = as_they_are
    seeds: int = 10
    arms: tuple[str, ...] = ()
    large: bool = False

    @property
    def classifies(self) -> bool:
        """Whether there is an accuracy."""
        return self.loss is cross_entropy

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def batches(self, data: Data, seed: int) -> Iterator[Batch]:
        """Batches without end, in another order every epoch; random numbers are drawn on the CPU."""
        rng = torch.Generator().manual_seed(seed)
        x, y = data.train
        while True:
            for index in torch.randperm(len(x), generator=rng).split(self.batch):
                if len(index) == min(self.batch, len(x)):
                    index = index.to(x.device)
                    yield self.prepare(x[index], y[index], rng)


class Objective(nn.Module):
    """A network with its loss: inputs and targets to a scalar. What is compiled."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.network(x), y)
