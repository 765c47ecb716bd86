"""The models and the systems of the budget benchmark: one training step of each, ready to be measured."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox import torch_adapter as adapter
from tools.zoo import models
from tools.zoo.models import Case, benchmarks


class Step(nn.Module):
    """A model and its loss in one module, so that whoever compiles it has the loss as well."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.args, self.loss = case.model, case.args, case.loss

    def forward(self, *args: Any) -> Tensor:
        return self.loss(self.model(*args))

    def alive_anyway(self) -> list[Tensor]:
        """Parameters, buffers, inputs and targets, which no system stores for backward."""
        targets = [v for v in inspect.getclosurevars(self.loss).nonlocals.values() if isinstance(v, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *self.args, *targets]


class Region(nn.Module):
    """Modules one after the other, run again in backward; what comes beside the first argument goes to each of them."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        def run(h: Tensor) -> Tensor:
            for part in self.parts:
                h = part(h, *args, **kwargs)
            return h

        return checkpoint(run, x, use_reentrant=False)


def in_regions(layers: nn.ModuleList | nn.Sequential, length: int) -> None:
    """Puts each run of this many layers into a region. Mutates ``layers``."""
    parts = list(layers)
    del layers[:]
    layers.extend(Region(parts[start : start + length]) for start in range(0, len(parts), length))


def _chain(find: Callable[[Any], nn.ModuleList | nn.Sequential], *lengths: int) -> dict[str, Callable[[Any], None]]:
    """Regions of these lengths, for a model whose layers follow each other."""
    return {f"{n}-to-a-region": lambda model, n=n: in_regions(find(model), n) for n in lengths}


def _every_layer(unet: models.UNet) -> None:
    in_regions(unet.down, 1)
    in_regions(unet.up, 1)


def _full_resolution(unet: models.UNet) -> None:
    unet.down[0], unet.up[-1] = Region([unet.down[0]]), Region([unet.up[-1]])


@dataclass(frozen=True)
class Model:
    """One model of the benchmark.

    Attributes:
        build: makes it, from torch's global seed.
        checkpoints: what eager checkpointing may do to it, by name; each mutates the model.
    """

    build: Callable[[], Case]
    checkpoints: dict[str, Callable[[Any], None]] = field(default_factory=dict)


MODELS = {
    "unet": Model(
        lambda: models.unet(batch=8, width=32), {"every-layer": _every_layer, "full-resolution": _full_resolution}
    ),
    "vit": Model(benchmarks.vit, _chain(lambda model: model.vit.layers, 1, 2, 4)),
    "gpt2": Model(benchmarks.gpt2, _chain(lambda model: model.transformer.h, 1, 2, 4)),
    "resnet-110": Model(lambda: benchmarks.preact(110), _chain(lambda model: model.blocks, 1, 3, 8)),
}
SYSTEMS = {
    "plain": "torch.compile",
    "fxapprox": "fxapprox",
    "torch-budget": "torch.compile, activation_memory_budget",
    "checkpoint": "eager, torch.utils.checkpoint",
}


def build(model: str) -> Step:
    """The same weights, inputs and targets every time."""
    torch.manual_seed(0)
    return Step(MODELS[model].build())


def runner(model: str, system: str, setting: str, step: Step) -> tuple[Callable[..., Any], AbstractContextManager]:
    """What runs the step in a system, and the context that it is to be run in. Eager checkpoints mutate ``step``."""
    if system == "plain":
        return torch.compile(step, dynamic=False), contextlib.nullcontext()
    if system == "torch-budget":
        budget = adapter.activation_memory_budget(float(setting))
        return torch.compile(step, dynamic=False), budget
    if system == "fxapprox":
        run = fxapprox.compile(step, memory_budget=float(setting), dynamic=False, strict=True)
        return run, contextlib.nullcontext()
    MODELS[model].checkpoints[setting](step.model)
    return step, contextlib.nullcontext()
