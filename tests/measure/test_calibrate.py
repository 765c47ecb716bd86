"""calibrate: what it measures is what happens, and it leaves no trace."""

from __future__ import annotations

import math
import sys
import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxapprox
from fxapprox import FxApproxError, Sensitivities
from fxapprox.codecs import Identity
from tools.zoo import models
from tools.zoo.models import Case
from tools.zoo.training import relative, step, unrewritten


def gradient_error(case: Case, **options: object) -> float:
    """Relative, against the exact partition, run eagerly."""
    torch.compiler.reset()
    _, exact = step(case, unrewritten(case.model))
    torch.compiler.reset()
    return relative(step(case, fxapprox.compile(case.model, lowering="eager", strict=True, **options))[1], exact)


@cache
def calibrated(name: str) -> tuple[Case, Sensitivities]:
    """A model, and what was measured of it."""
    case = models.MODELS[name]()
    return case, fxapprox.calibrate(case.model, case.loss, case.args, progress=False)


@pytest.mark.parametrize("name", ["gpt2", "demo_resnet", "mlp_dropout"])
def test_one_value_in_few_bits_errs_as_measured(name: str, one_thread: None) -> None:
    """A policy that stores all other values exactly gives the error that was measured for this one."""
    case, measured = calibrated(name)
    (graph,) = measured.graphs
    value = max(graph, key=lambda v: graph[v][4])
    codec = next(e.codec for e in fxapprox.explain(case.model, *case.args, bits=4).plan.graphs[0] if e.value == value)
    found = gradient_error(case, bits=4, policy=lambda a: codec if a.name == value else Identity())
    # another mask of dropout, or another value's code carrying a decision, changes it a little
    assert found == pytest.approx(math.sqrt(graph[value][4]), rel=0.25)


def test_the_sum_predicts_the_whole_plan(one_thread: None) -> None:
    case, measured = calibrated("gpt2")
    (graph,) = measured.graphs
    bits = {e.value: e.codec.bits for e in fxapprox.explain(case.model, *case.args, bits=4).plan.graphs[0]}
    predicted = math.sqrt(sum(errors[bits[value] or 8] for value, errors in graph.items()))
    assert gradient_error(case, bits=4) == pytest.approx(predicted, rel=0.15)


def test_auto_is_no_worse_than_uniform_in_the_same_bytes(one_thread: None) -> None:
    case, measured = calibrated("demo_resnet")
    auto = {"bits": "auto", "average_bits": 4, "sensitivities": measured}
    assert gradient_error(case, **auto) <= gradient_error(case, bits=4)
    sizes = [fxapprox.explain(case.model, *case.args, **options).saved_bytes for options in (auto, {"bits": 4})]
    assert sizes[0] <= sizes[1] * 1.01


def test_nothing_is_touched_and_it_repeats() -> None:
    case = models.mlp_dropout()
    model = nn.Sequential(nn.BatchNorm1d(64), case.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    state = torch.get_rng_state()
    first = fxapprox.calibrate(model, case.loss, case.args[0], progress=False)
    second = fxapprox.calibrate(model, case.loss, case.args, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool((p.grad == 3.0).all()) for p in model.parameters() if p.grad is not None)
    assert first.graphs == second.graphs


def test_files(tmp_path: object) -> None:
    measured = Sensitivities(({"a": {4: 0.5, 8: 0.25}}, {}))
    measured.save(f"{tmp_path}/measured.json")
    assert Sensitivities.load(f"{tmp_path}/measured.json") == measured
    assert measured.of(["a"]) == {"a": {4: 0.5, 8: 0.25}}
    assert measured.of(["b"]) is None


def test_several_graphs() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.gelu(self.first(x))
            torch._dynamo.graph_break()
            return F.gelu(self.second(y))

    torch.manual_seed(0)
    model, x = Broken(), torch.randn(64, 64)
    measured = fxapprox.calibrate(model, lambda out: out.square().sum(), x, progress=False)
    assert len(measured.graphs) == 2
    assert all(0 < e < 1 for graph in measured.graphs for errors in graph.values() for e in errors.values())
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # Dynamo's, at a break
        fxapprox.explain(model, x, bits="auto", average_bits=6, sensitivities=measured)


def test_bad_input_is_said() -> None:
    model, x = nn.Linear(64, 64), torch.randn(64, 64)
    with pytest.raises(FxApproxError, match="returns a scalar"):
        fxapprox.calibrate(model, None, x, progress=False)
    with pytest.raises(FxApproxError, match="with a gradient"):
        fxapprox.calibrate(model.requires_grad_(False), lambda out: out.sum(), x, progress=False)


def test_gradients_that_are_not_finite() -> None:
    with pytest.raises(FxApproxError, match="not finite"):
        fxapprox.calibrate(nn.Linear(64, 64), lambda out: out.sum() * math.nan, torch.randn(64, 64), progress=False)


def test_a_code_that_makes_gradients_of_nan_counts_as_useless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules["fxapprox.measure.calibrate"], "_distance", lambda found, exact, own: (math.nan, 0.0)
    )
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    measured = fxapprox.calibrate(model, lambda out: out.square().mean(), torch.randn(64, 64), progress=False)
    assert {error for graph in measured.graphs for errors in graph.values() for error in errors.values()} == {1e12}
