"""checkpoint: segments that are computed again change no bit, and from encoded boundaries take no decision again."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.measure import stored_bytes
from fxapprox.passes.pipeline import Rewrite
from fxapprox.report import Report, report_of
from tests.models import MODELS
from tests.models.mobilenet_v3 import InvertedResidual
from tests.models.mobilenet_v3 import Bottleneck as Line
from tests.passes.graphs import Step, Traced, traced
from tests.training import relative

pytestmark = pytest.mark.usefixtures("one_thread")


def clamped() -> nn.Module:
    """Inverted residuals with hard swish and relu6."""
    lines = (Line(3, 32, 8, True, True, 1), Line(3, 32, 8, False, True, 1), Line(3, 32, 16, True, False, 2))
    blocks = (InvertedResidual(8, line) for line in lines)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), *blocks, nn.Flatten(), nn.Linear(16 * 64, 4))


def pooled() -> nn.Module:
    """Convolutions with max pooling, and a classifier with log-softmax."""
    sizes = ((3, 8), (8, 8), (8, 16), (16, 16))
    layers = ((nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)) for a, b in sizes)
    return nn.Sequential(*chain.from_iterable(layers), nn.Flatten(), nn.Linear(16, 10), nn.LogSoftmax(1))


class Attention(nn.Module):
    """Attention layers that are not fused: softmax inside a segment."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            q, k, v = layer(x).chunk(3, -1)
            x = x + torch.softmax(q @ k.transpose(1, 2) / 32**0.5, -1) @ v
        return x


def zoo(name: str, **settings: Any) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def made() -> tuple[nn.Module, tuple[Tensor, ...]]:
        case = MODELS[name](**settings)
        return case.model, case.args

    return made


IMAGES = (torch.randn(4, 3, 16, 16),)
ZOO: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "resnet": zoo("demo_resnet", depth=14, batch=4, width=4),
    "unet": zoo("unet", width=8, size=16),
    "gpt": zoo("gpt", layers=3, width=32, sequence=32),
    "gpt2": zoo("gpt2"),
    "llama": zoo("llama"),
    "bert": zoo("bert", layers=1),
    "mlp": zoo("mlp_dropout"),
    "clamped": lambda: (clamped(), IMAGES),
    "pooled": lambda: (pooled(), IMAGES),
    "attention": lambda: (Attention(), (torch.randn(4, 16, 32),)),
}


@cache
def joint(name: str) -> Traced:
    """Traced once for all tests."""
    torch.manual_seed(0)
    model, args = ZOO[name]()
    return traced(model, *args)


@cache
def without(name: str, bits: int | None) -> Step:
    return joint(name).step(joint(name).split(bits=bits))


def checkpointed(name: str, **options: Any) -> tuple[Step, Rewrite, Report]:
    halves = joint(name).split(**options)
    return joint(name).step(halves), halves, report_of(halves, lowering="eager")


COUNTS: dict[int | None, tuple[int | str, ...]] = {None: ("sqrt", 2, 5), 8: (3,), 4: (4, 1000)}


@pytest.mark.parametrize("name", ZOO)
def test_exact_boundaries_change_no_bit(name: str) -> None:
    """Loss, gradients and running statistics; dropout repeats its masks. What is reported is what is stored."""
    segments = 0
    for bits, counts in COUNTS.items():
        for count in counts:
            found, halves, report = checkpointed(name, bits=bits, checkpoint=count)
            assert found.same_as(without(name, bits)), (bits, count)
            assert report.saved_bytes == found.stored, (bits, count)
            assert len(halves.segments) < 1000 if count == "sqrt" else len(halves.segments) < count  # type: ignore[operator]
            segments += len(halves.segments)
    assert segments


# relative gradient errors with boundaries in 8 and 4 bits, activations exact; about twice what was measured
LIMITS = dict.fromkeys(ZOO, (0.02, 0.4))


@pytest.mark.parametrize("name", ZOO)
def test_encoded_boundaries_keep_forward_and_move_gradients_little(name: str) -> None:
    exact = without(name, None)
    for bits, limit in zip((8, 4), LIMITS[name], strict=True):
        found, _, report = checkpointed(name, bits=None, checkpoint=4, checkpoint_bits=bits)
        assert all(map(torch.equal, found.outputs, exact.outputs))
        assert relative(found.gradient, exact.gradient) < limit
        assert report.saved_bytes == found.stored
        print(name, bits, relative(found.gradient, exact.gradient), {d.storage for d in report.decisions})
