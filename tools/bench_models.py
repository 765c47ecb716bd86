"""The models of the CPU benchmark: factories as ``fxapprox bench`` takes them, the loss compiled with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import nn

from fxapprox.demo.model import preact_resnet
from tools import budget_models, stored_bytes
from tools.stored_bytes import classifier, images
from tools.zoo import models
from tools.zoo.models import Case

Factory = Callable[[], tuple[nn.Module, tuple[Any, ...], Callable[[Any], Any]]]


def _factory(build: Callable[[], Case]) -> Factory:
    def made() -> tuple[nn.Module, tuple[Any, ...], Callable[[Any], Any]]:
        case = build()
        return case.model, case.args, case.loss

    return made


def _resnet_18() -> Case:
    config = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", embedding_size=64
    )
    return classifier("resnet-18", transformers.ResNetForImageClassification(config), images(16, 64))


MODELS: dict[str, Factory] = {
    "resnet_29": _factory(lambda: classifier("29", preact_resnet(29, block="bottleneck"), images(64, 32))),
    "resnet_110": _factory(budget_models.resnet_110),
    "resnet_18": _factory(_resnet_18),
    "resnet_50": _factory(stored_bytes.resnet_50),
    "unet": _factory(lambda: models.unet(batch=8, width=32)),
    "vit": _factory(stored_bytes.vit),
    "gpt2": _factory(budget_models.gpt2),
    "llama": _factory(stored_bytes.llama),
    "bert": _factory(stored_bytes.bert),
}
globals().update(MODELS)  # a target names a function of its module
