"""An arm's gradient error on its way: against plain torch.compile at the same weights, by the audit's estimates."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from fxapprox.frontend.tracing import untouched
from fxapprox.measure.gradient_error import GradientError, Tally, total_error
from tools.convergence.arms import Step
from tools.convergence.task import Data, Objective, Task

BATCHES = 8
SEED = 10_000  # that of no run


def share(reference: Objective, objective: Objective) -> None:
    """Lets one have the weights and buffers of the other, now and later."""
    for other, own in zip(
        (*reference.parameters(), *reference.buffers()), (*objective.parameters(), *objective.buffers()), strict=True
    ):
        other.data = own.data


class Probe:
    """Measures whenever it is asked to.

    Args:
        own, reference: objectives that share their weights, and what runs them.
    """

    def __init__(self, task: Task, data: Data, own: tuple[Objective, Step], reference: tuple[Objective, Step]) -> None:
        self.pair = own, reference
        self.batches = list(islice(task.batches(data, SEED), BATCHES))
        self.found: list[GradientError] = []

    def measure(self) -> None:
        """Adds the error at the current weights; buffers and random numbers stay as they are."""
        tallies: list[Tally] = []
        with untouched(self.pair[0][0]):
            for seed, (x, y) in enumerate(self.batches, start=SEED):
                found, exact = (_gradients(objective, step, x, y, seed) for objective, step in self.pair)
                tallies = tallies or [Tally() for _ in exact]
                for tally, a, b in zip(tallies, found, exact, strict=True):
                    tally.add(a, b)
        self.found.append(total_error(tallies, tallies))


def _gradients(objective: Objective, step: Step, x: Tensor, y: Tensor, seed: int) -> list[Tensor]:
    objective.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    step(x, y).backward()
    return [p.grad for p in objective.parameters() if p.grad is not None]
