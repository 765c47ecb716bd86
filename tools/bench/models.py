"""The models of the CPU benchmark: factories as ``fxapprox bench`` takes them, the loss compiled with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tools.zoo import models
from tools.zoo.models import Case, benchmarks

Factory = Callable[[], tuple[nn.Module, tuple[Any, ...], Callable[[Any], Any]]]


def _factory(build: Callable[[], Case]) -> Factory:
    def made() -> tuple[nn.Module, tuple[Any, ...], Callable[[Any], Any]]:
        case = build()
        return case.model, case.args, case.loss

    return made


MODELS: dict[str, Factory] = {
    "resnet_29": _factory(lambda: benchmarks.preact(29, 64, bottleneck=True)),
    "resnet_110": _factory(lambda: benchmarks.preact(110)),
    "resnet_18": _factory(benchmarks.resnet_18),
    "resnet_50": _factory(benchmarks.resnet_50),
    "unet": _factory(lambda: models.unet(batch=8, width=32)),
    "vit": _factory(benchmarks.vit),
    "gpt2": _factory(benchmarks.gpt2),
    "llama": _factory(benchmarks.llama),
    "bert": _factory(benchmarks.bert),
}
globals().update(MODELS)  # a target names a function of its module
