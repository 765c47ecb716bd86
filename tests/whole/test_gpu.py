"""A training step on a GPU, compiled by Inductor: forward is exact, gradients are close, memory falls.

The slow tests run the same checks on the CPU for one model, so that they stay fit to run.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.bench.worker import moved
from fxapprox.frontend.target import Target
from fxapprox.measure.memory import peak_bytes
from tools.zoo import models
from tools.zoo.training import gradients, relative

gpu = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
MODELS = {
    "resnet": lambda: models.demo_resnet(depth=20, batch=64, width=16),
    "unet": lambda: models.unet(batch=8, width=32),
    "gpt": lambda: models.gpt(layers=4, width=256, sequence=128, vocab=1024),
    "llama": lambda: models.llama(batch=8, width=256, sequence=128),
    "dropout": lambda: models.mlp_dropout(batch=512, width=512),
}
RUNS = [
    pytest.param("cpu", "dropout", marks=(pytest.mark.inductor, pytest.mark.slow)),
    *(pytest.param("cuda", name, marks=gpu) for name in MODELS),
]
ROUNDING = 1e-3  # of a gradient's norm: sums of atomics, and convolutions in TF32


class Autocast(nn.Module):
    """A model with its loss, in lower precision."""

    def __init__(self, target: Target, device: str, dtype: torch.dtype | None) -> None:
        super().__init__()
        assert isinstance(target.model, nn.Module)
        self.model, self.loss, self.device, self.dtype = target.model, target.loss, device, dtype

    def forward(self, *args: Tensor) -> Tensor:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            assert self.loss is not None
            return self.loss(self.model(*args))


def built(device: str, name: str, dtype: torch.dtype | None = None) -> tuple[Autocast, tuple[Tensor, ...]]:
    """A model with its loss, and its inputs."""
    case = MODELS[name]()
    target = moved(Target(case.model, case.args, case.loss, name), torch.device(device), None)
    return Autocast(target, device, dtype), target.args


def step(model: nn.Module, args: tuple[Tensor, ...], **options: object) -> tuple[Tensor, Tensor]:
    """Loss and gradients of the second step of three, with plain torch.compile if there are no options."""
    torch.compiler.reset()
    run = fxapprox.compile(model, strict=True, **options) if options else torch.compile(model)  # type: ignore[arg-type]
    found = []
    for seed in range(3):
        model.zero_grad()
        torch.manual_seed(seed)
        loss = run(*args)
        loss.backward()
        found.append((loss.detach().clone(), gradients(model).float()))
    return found[1]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("device", "name"), RUNS)
def test_forward_is_exact_and_gradients_are_close(device: str, name: str, dtype: torch.dtype | None) -> None:
    model, args = built(device, name, dtype)
    loss, exact = step(model, args)
    bound = ROUNDING if dtype is None else 0.03
    for options, limit in (({"bits": None}, bound), ({"bits": 8}, 0.02 + bound), ({"bits": 4}, 0.15 + bound)):
        found = step(model, args, **options)
        assert torch.equal(found[0], loss), options
        assert relative(found[1], exact) < limit, options


@pytest.mark.parametrize(("device", "name"), RUNS)
def test_checkpoints_and_operators_one_by_one_change_no_gradient(device: str, name: str) -> None:
    model, args = built(device, name)
    _, exact = step(model, args, bits=4)
    assert relative(step(model, args, bits=4, checkpoint="sqrt")[1], exact) < 0.02
    if name != "dropout":  # operators one by one draw other numbers
        assert relative(step(model, args, bits=4, lowering="eager")[1], exact) < 0.02


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in MODELS if name != "dropout"])
def test_the_real_peak_falls(name: str) -> None:
    model, args = built("cuda", name)
    peaks = []
    for options in ({}, {"bits": 8}, {"bits": 4}):
        step(model, args, **options)
        run = fxapprox.compile(model, **options) if options else torch.compile(model)
        run(*args).backward()
        model.zero_grad()
        peaks.append(peak_bytes(lambda run=run: run(*args).backward(), "cuda").peak)
    assert peaks[2] <= peaks[1] < 0.8 * peaks[0]


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in MODELS])
def test_cuda_graphs(name: str) -> None:
    model, args = built("cuda", name)
    loss, exact = step(model, args, bits=8)
    found = step(model, args, bits=8, mode="reduce-overhead")
    assert torch.equal(found[0], loss)
    assert relative(found[1], exact) < ROUNDING
