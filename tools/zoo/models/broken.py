"""Builders that fail, for tests of what runs builders."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn

from tools.zoo.models import Case


def raises(*, batch: int = 2) -> Case:
    """Cannot be built."""
    raise RuntimeError("no such weights")


class Stops(nn.Module):
    """A model that ends the process in its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self._count()
        return self.linear(x)

    @torch.compiler.disable
    def _count(self) -> None:
        self.calls += 1
        if self.calls > 1:
            os.abort()


def stops(*, batch: int = 2) -> Case:
    """Ends the process while its peak is measured."""
    return Case("stops", Stops(), (torch.randn(batch, 4),), torch.sum)


def sleeps(*, batch: int = 2) -> Case:
    """Takes longer than anybody waits."""
    time.sleep(3600)
    return stops(batch=batch)
