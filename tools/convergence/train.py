"""Training and evaluation of a task's network, whatever runs its forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from tools.convergence.task import Data, Objective, Place, Task

ROWS_EVALUATED = 500
APART = 1_000_003  # between the random numbers of two seeds
BASE_SEED = 20_000  # that of no run


def started(task: Task, seed: int, place: Place) -> Objective:
    """The network with its first weights, and its loss."""
    torch.manual_seed(seed)
    return Objective(task.network(place), task.loss)


def descend(
    task: Task, objective: Objective, step: Callable[[Tensor, Tensor], Tensor], data: Data, *, seed: int, order: int = 0
) -> Iterator[float]:
    """Trains; gives the loss of each step after it."""
    optimizer = task.optimizer([p for p in objective.parameters() if p.requires_grad], task.rate)
    for i, batch in enumerate(islice(task.batches(data, APART * order + seed), task.steps)):
        for group in optimizer.param_groups:
            group["lr"] = task.rate_at(i)
        torch.manual_seed(APART * seed + i)  # dropout is the same in all arms, whatever they drew before
        optimizer.zero_grad(set_to_none=True)
        loss = step(*batch)
        loss.backward()
        optimizer.step()
        yield loss.item()


def trained(task: Task, place: Place) -> nn.Module:
    """The network at the end of its training, run as it is."""
    objective, data = started(task, BASE_SEED, place), task.data(place)
    for _ in descend(task, objective, objective, data, seed=BASE_SEED):
        pass
    return objective.network


@torch.no_grad()
def evaluated(task: Task, objective: Objective, data: Data) -> tuple[float, float | None]:
    """Loss and accuracy on what was held back, of the network itself, not compiled.

    Of squared errors the loss is half the logarithm of their mean: a Gaussian's nats, but for a constant.
    """
    objective.eval()
    loss, right, (inputs, targets) = 0.0, 0, data.valid
    for x, y in zip(inputs.split(ROWS_EVALUATED), targets.split(ROWS_EVALUATED), strict=True):
        scores = objective.network(x)
        loss += task.loss(scores, y).item() * len(x) / len(inputs)
        right += int((scores.argmax(-1) == y).sum()) if task.classifies else 0
    objective.train()
    if task.classifies:
        return loss, right / targets.numel()
    return 0.5 * math.log(loss) if loss > 0 else math.nan, None
