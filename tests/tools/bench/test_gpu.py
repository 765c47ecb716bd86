"""The search for the largest batch, and the whole benchmark of a tiny model on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tools.bench import gpu, gpu_models


class Affine(gpu.Trials):
    """Needs so many bytes for each example; what is above the memory fails."""

    def __init__(self, memory: int, each: int, fixed: int = 0, bump: int = 0) -> None:
        self.memory, self.each, self.fixed, self.bump = memory, each, fixed, bump
        self.tried: list[int] = []

    def needs(self, batch: int) -> int | None:
        self.tried.append(batch)
        needed = self.fixed + batch * self.each + (self.bump if batch > 40 else 0)
        return needed if needed <= self.memory else None


@pytest.mark.parametrize(("fixed", "bump"), [(0, 0), (1000, 0), (1000, 500)])
def test_the_largest_batch_is_near_the_limit_after_a_few_tries(fixed: int, bump: int) -> None:
    trials = Affine(10_000, 100, fixed, bump)
    batch, needed = gpu.largest(trials, 10_000, first=8)
    best = (10_000 - fixed - bump) // 100
    assert needed <= 10_000
    assert 0.85 * best <= batch <= best
    assert len(trials.tried) <= 5


def test_a_first_batch_that_does_not_fit_is_halved() -> None:
    assert gpu.largest(Affine(1000, 100), 1000, first=64)[0] in (8, 9, 10)
    assert gpu.largest(Affine(10, 100), 10, first=64) == (0, 0)


def test_a_tiny_model_on_the_cpu(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(gpu.main)
    options = ["--out", str(tmp_path), "--models", "tiny", "--precision", "fp32", "--systems", "eager", "--rounds", "1"]
    result = CliRunner().invoke(app, [*options, "--device", "cpu", "--memory", "8MiB"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "tiny-fp32-largest.json").read_text())["eager"]
    assert found["failed"] == ""
    assert found["batch"] > 16
    assert 2**22 < found["bytes"] <= 2**23
    text = (tmp_path / "bench_gpu.md").read_text()
    assert "## tiny-fp32: " in text
    assert f"| eager | {found['batch']} |" in text


def test_wrong_options(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(gpu.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--device", "cpu"])
    assert result.exit_code == 2
    assert "wants a limit" in " ".join(result.output.split())


@pytest.mark.parametrize("precision", gpu_models.PRECISIONS)
def test_autocast_is_in_the_model(precision: str) -> None:
    model, args, loss = gpu_models.target("tiny", precision, 2)
    out = model(*args)
    assert str(out.dtype) == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    assert loss(out).isfinite()
