"""One row of the table of architectures, and the model that is built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from tools.zoo.models import Case

Inputs = Callable[[int], dict[str, Tensor]]


def own_loss(output: Any) -> Tensor:
    """The loss that the model computes itself, from the labels among its inputs."""
    return output.loss


@dataclass(frozen=True)
class Architecture:
    """A model of the transformers package, in data.

    Attributes:
        model: name of its class, so that the table imports nothing.
        inputs: from a batch to the input tensors, by the names of forward's arguments.
        config: settings for its configuration class; those left out have the package's defaults, dropout among them.
        loss: the model's output to a scalar.
    """

    model: str
    inputs: Inputs
    config: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[Any], Tensor] = own_loss


class Positional(nn.Module):
    """Hands positional tensors to the arguments of these names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)))


def build(name: str, architecture: Architecture, *, seed: int = 0, batch: int = 4) -> Case:
    """The model with random weights, in training mode, and random inputs."""
    model = getattr(import_module("transformers"), architecture.model)
    torch.manual_seed(seed)
    module = model(model.config_class(**architecture.config))
    inputs = architecture.inputs(batch)
    return Case(name, Positional(module, tuple(inputs)).train(), tuple(inputs.values()), architecture.loss)
