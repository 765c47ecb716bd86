"""Other number formats: autocast around and inside a model, GradScaler, bfloat16 and float64 models, complex parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training_loops.beside import LOWERINGS, Between, Compile, Seen, check, gradients, mlp, slow, step

BATCH = 64
HALVES = [torch.bfloat16, *slow(torch.float16)]


@pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed")  # Inductor, of codes' scales beside float16
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_around_the_model(dtype: torch.dtype, lowering: str) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        with torch.autocast("cpu", dtype):
            loss = compile(model)(torch.randn(BATCH, 32)).float().square().mean()
        loss.backward()
        return Seen([loss.detach()], gradients(model))

    (report,) = check(loop, lowering=lowering)
    assert report.saved_bytes < report.baseline_bytes / (2 if lowering == "eager" else 1.5)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_inside_the_model(dtype: torch.dtype) -> None:
    narrow = nn.Linear(64, 64)

    def middle(h: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return narrow(h).relu().float()

    def loop(compile: Compile) -> Seen:
        model = Between(middle)
        return step(model, compile(model), torch.randn(BATCH, 32))

    check(loop)


def test_grad_scaler_over_steps() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        run, optimizer = compile(model), torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        losses, scales = [], []
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = run(torch.randn(BATCH, 32)).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
            scales.append(torch.tensor(scaler.get_scale()))
        return Seen([losses[0], *scales], [*losses, *gradients(model), *(p.detach() for p in model.parameters())])

    check(loop)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, *slow(torch.float16)])
def test_a_model_in_another_dtype(dtype: torch.dtype) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp().to(dtype)
        return step(model, compile(model), torch.randn(BATCH, 32, dtype=dtype, requires_grad=True))

    check(loop)


class Spectral(nn.Module):
    """Multiplies spectra by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(33, dtype=torch.complex64))

    def forward(self, h: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(h) * self.weight, n=64)


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_complex_parts() -> None:
    def loop(compile: Compile) -> Seen:
        model = Between(Spectral())
        return step(model, compile(model), torch.randn(BATCH, 32))

    (report,) = check(loop)
    complex_values = [d for d in report.decisions if d.dtype == "complex64" and d.bytes_after]
    assert {d.storage for d in complex_values} == {"8-bit complex group"}
