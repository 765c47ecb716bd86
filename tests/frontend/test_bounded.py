"""error=: the bound is kept on the batch that was measured, whatever the model, and the first step is exact."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox import OptionError
from fxapprox.frontend.bound_measured import SINGLE
from fxapprox.planning.bound import counted
from tools.zoo import models
from tools.zoo.models import Case

SLACK = 1.02  # compiled anew, kernels round otherwise than operator by operator


def gradients(case: Case, run: Any) -> list[Tensor]:
    """Those of all parameters, zeros where there is none, with the same random numbers each time."""
    case.model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    case.loss(run(*case.args)).backward()
    found = [p for p in case.model.parameters() if p.requires_grad]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in found]


def errors(found: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Of all together, and of the worst that counts."""
    norms = [float(g.double().norm()) for g in exact]
    off = [float((a.double() - b.double()).norm()) for a, b in zip(found, exact, strict=True)]
    return math.hypot(*off) / math.hypot(*norms), max(off[i] / norms[i] for i in counted(norms))


def mlp(*, broken: bool = False, batch: int = 256) -> Case:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(4))
            self.norms = nn.ModuleList(nn.LayerNorm(128) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.half(x, 0, 1)
            if broken:
                torch._dynamo.graph_break()
            return self.half(x, 2, 3)

        def half(self, x: Tensor, *which: int) -> Tensor:
            for i in which:
                x = x + F.gelu(self.layers[i](self.norms[i](x)))
            return x

    return Case("mlp", Model(), (torch.randn(batch, 128),), lambda out: (out - 1).square().mean())


@pytest.mark.parametrize("bound", [0.05, 0.02, 0.003])
@pytest.mark.parametrize("name", ["gpt2", "demo_resnet", "unet", "mlp_dropout"])
def test_the_bound_is_kept(name: str, bound: float, one_thread: None) -> None:
    torch.compiler.reset()
    case = models.MODELS[name]()
    exact = gradients(case, fxapprox.compile(case.model, bits=None, lowering="eager", strict=True))
    torch.compiler.reset()
    run = fxapprox.compile(case.model, error=bound, lowering="eager", strict=True)
    assert errors(gradients(case, run), exact)[0] < 1e-5
    whole, worst = errors(gradients(case, run), exact)
    assert whole <= bound * SLACK
    assert worst <= SINGLE * bound * SLACK
    (report,) = fxapprox.reports(run)
    assert report.saved_bytes < report.baseline_bytes / 2
    assert report.options.error == bound


def test_a_larger_error_stores_less(one_thread: None) -> None:
    stored = []
    for bound in (0.2, 0.05, 0.005, 1e-5):
        torch.compiler.reset()
        case = models.MODELS["gpt2"]()
        run = fxapprox.compile(case.model, error=bound, lowering="eager")
        for _ in range(2):
            gradients(case, run)
        stored.append(fxapprox.reports(run)[0].saved_bytes)
    assert stored == sorted(stored)
    torch.compiler.reset()
    run = fxapprox.compile(case.model, bits=None, lowering="eager")
    gradients(case, run)
    assert stored[-1] == fxapprox.reports(run)[0].saved_bytes  # what no code keeps is exact mode's


def test_graphs_share_the_bound(one_thread: None) -> None:
    torch.compiler.reset()
    case = mlp(broken=True)
    exact = gradients(case, case.model)
    run = fxapprox.compile(case.model, error=0.05, lowering="eager")
    gradients(case, run)
    whole, worst = errors(gradients(case, run), exact)
    assert len(fxapprox.reports(run)) == 2
    assert 0.001 < whole <= 0.05 * SLACK
    assert worst <= 0.15 * SLACK


@pytest.mark.parametrize("lowering", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_symbolic_sizes_and_a_backend_by_name(lowering: str, one_thread: None) -> None:
    torch.compiler.reset()
    case = mlp()
    other = replace(case, args=mlp(batch=96).args)
    options = {"error": 0.02, "lowering": lowering}
    run = torch.compile(case.model, backend="fxapprox", options=options, dynamic=True)
    exact = gradients(case, case.model)
    gradients(case, run)
    assert errors(gradients(case, run), exact)[0] <= 0.02 * SLACK
    exact = gradients(other, case.model)
    assert errors(gradients(other, run), exact)[0] <= 0.04  # another batch, of another size
    assert len(fxapprox.reports(run)) == 1


def test_steps_that_measure_nothing_are_exact(one_thread: None) -> None:
    torch.compiler.reset()
    case = mlp()
    exact = gradients(case, case.model)
    run = fxapprox.compile(case.model, error=0.05, lowering="eager")
    with torch.no_grad():
        run(*case.args)
    for _ in range(2):
        run(*case.args)  # without a backward
    (case.loss(run(*case.args)) * math.inf).backward()
    assert errors(gradients(case, run), exact)[0] < 1e-5  # this one measures
    assert 0.001 < errors(gradients(case, run), exact)[0] <= 0.05 * SLACK


def test_it_says_what_was_measured(capfd: pytest.CaptureFixture[str], one_thread: None) -> None:
    torch.compiler.reset()
    case = mlp()
    run = fxapprox.compile(case.model, error=0.02, lowering="eager")
    for _ in range(3):
        gradients(case, run)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fxapprox: error=0.02")]
    assert len(told) == 1
    assert "stored instead of" in told[0]


@pytest.mark.parametrize("other", [{"bits": 4}, {"memory_budget": 0.5}, {"bits": "auto"}, {"bits": None}])
def test_nothing_else_chooses_bits(other: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="error chooses bits by itself"):
        fxapprox.compile(nn.Linear(4, 4), error=0.02, **other)


@pytest.mark.parametrize("bad", [0, 0.0, 1.0, -0.1, True, "2%", math.nan])
def test_bounds_that_are_none(bad: Any) -> None:
    with pytest.raises(OptionError, match="error="):
        fxapprox.compile(nn.Linear(4, 4), error=bad)


def test_what_runs_no_step_says_so() -> None:
    with pytest.raises(OptionError, match="measured in a training step"):
        fxapprox.explain(nn.Linear(64, 64), torch.randn(64, 64), error=0.02)
    with pytest.raises(OptionError, match="measured in a training step"):
        fxapprox.max_batch(nn.Linear(64, 64), lambda n: torch.randn(n, 64), memory="1GiB", error=0.02)
