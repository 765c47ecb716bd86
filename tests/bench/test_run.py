"""A benchmark of eager systems, which need no compiler; what it does with what fails."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from fxapprox.bench import records, run, show
from fxapprox.bench.records import Bench, Record
from fxapprox.bench.worker import Trial
from fxapprox.cli.app import app
from fxapprox.errors import FxApproxError, OptionError, TargetError

TARGET = """
import sys
import torch
from torch import nn

def plain():
    print("building")
    x = torch.randn(256, 64)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), (x,), lambda y: y.square().mean()

def random():
    model, args, loss = plain()
    return nn.Sequential(model, nn.Dropout()), args, loss

def one():
    return nn.Linear(4, 4), (torch.randn(2, 4),), lambda y: y.sum()

def late():
    model, args, loss = plain()
    calls = []

    def failing(y):
        calls.append(y.shape)
        if sys.argv[2] == "int8-hooks" and len(calls) == 1 or sys.argv[2] == "checkpoint" and len(calls) == 2:
            raise RuntimeError("no more calls")
        return loss(y)

    return model, args, failing

def broken():
    raise RuntimeError("no data")
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "models.py").write_text(TARGET)
    return str(tmp_path / "models.py")


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_eager_systems_in_turn(target: str) -> None:
    found = run.bench(f"{target}:plain", ("eager", "checkpoint", "int8-hooks"), rounds=3, console=quiet())
    eager, _, hooks = found.records
    assert found.reference == "float64"
    assert found.device == f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    assert [len(record.step_seconds) for record in found.records] == [3, 3, 3]
    assert eager.gradient_error is not None
    assert hooks.gradient_error is not None
    assert eager.gradient_error < 1e-5 < 1e-4 < hooks.gradient_error < 0.1
    assert hooks.stored_bytes < 0.75 * eager.stored_bytes  # what two operators save is stored twice
    assert 0 < eager.stored_bytes <= eager.alive_bytes <= eager.peak_bytes


def test_a_system_that_fails_is_a_record(target: str) -> None:
    found = run.bench(f"{target}:one", ("eager", "checkpoint"), rounds=1, console=quiet())
    assert found.records[0].failed == ""
    assert "nothing to put checkpoints between" in found.records[1].failed
    assert "nothing to put checkpoints between" in show.markdown(found)


def test_a_system_that_fails_in_its_first_step_or_later_is_a_record(target: str) -> None:
    found = run.bench(f"{target}:late", ("eager", "checkpoint", "int8-hooks"), rounds=1, console=quiet())
    assert [record.failed for record in found.records] == ["", *["RuntimeError: no more calls"] * 2]
    assert len(found.records[0].step_seconds) == 1


def test_random_numbers_leave_no_float64(target: str) -> None:
    found = run.bench(f"{target}:random", ("eager",), rounds=1, console=quiet())
    assert found.reference == "torch.compile"
    assert found.records[0].gradient_error is None


def test_a_target_that_fails_everywhere(target: str) -> None:
    with pytest.raises(TargetError, match="no data"):
        run.bench(f"{target}:broken", ("eager",), rounds=1, console=quiet())


def test_a_step_that_fails_in_a_round_costs_its_own_row_only() -> None:
    class Broken(run.Worker):
        def __init__(self) -> None:
            pass

        def ask(self, do: str, **request: object) -> dict[str, object]:
            raise run.WorkerFailed("out of memory")

    class Fine(Broken):
        def ask(self, do: str, **request: object) -> dict[str, object]:
            return {"seconds": 0.5}

    found, workers = {"eager": Record("eager"), "fp8": Record("fp8")}, {"eager": Fine(), "fp8": Broken()}
    for turn in range(2):
        run._round(turn, workers, found)
    assert found == {"eager": Record("eager", step_seconds=(0.5, 0.5)), "fp8": Record("fp8", failed="out of memory")}


def test_wrong_options(target: str) -> None:
    with pytest.raises(OptionError, match="no system 'tf'; there are: eager"):
        run.bench(f"{target}:plain", ("tf",))
    with pytest.raises(OptionError, match="cpu and cuda"):
        run.bench(f"{target}:plain", ("eager",), device="meta")
    result = CliRunner().invoke(app, ["bench", f"{target}:plain", "--systems", "lightning"])
    assert isinstance(result.exception, OptionError)


def made() -> Bench:
    base = Record("compile", 8 << 20, 9 << 20, 10 << 20, 20.0, (0.2, 0.1, 0.4), 1e-7, (2.5).hex())
    four = Record("fxapprox-4", 1 << 20, 2 << 20, 4 << 20, 26.0, (0.2, 0.12, 0.2), 0.1, (2.5).hex())
    failed = Record("fp8", failed="RuntimeError: no fp8 | here")
    return Bench("m.py:make", "CPU", "2.13.0", 2, "float64", (base, four, failed))


def test_ratios_are_of_the_same_round() -> None:
    bench = made()
    assert bench.step_ratios(bench.records[1]) == pytest.approx([1.0, 1.2, 0.5])
    assert bench.step_ratios(bench.records[2]) == []
    text = show.markdown(bench)
    row = "| fxapprox, 4 bits | 1.0 | 2.0 | 4.0 | 0.40 | 1.00x | 0.75-1.10 | 1.30x | 10.00% | same bits |"
    assert row in text
    assert "One training step on CPU, torch 2.13.0, 2 threads." in text
    assert "RuntimeError: no fp8 / here" in text


def test_gradients_that_are_not_finite_are_called_so() -> None:
    assert show.error_text(Record("fp8", gradient_error=math.nan)) == "not finite"
    assert show.error_text(Record("fp8", gradient_error=0.025)) == "2.50%"
    assert show.error_text(Record("fp8")) == "-"


def test_a_timed_step_follows_another_one(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    ran: list[str] = []
    trial = Trial(f"{target}:plain", "eager", "cpu", 0)
    run = trial.run
    trial.run = lambda *args: (ran.append("step"), run(*args))[1]
    clock = iter((1.0, 1.25))
    monkeypatch.setattr(time, "perf_counter", lambda: (ran.append("clock"), next(clock))[1])
    assert trial.timed() == {"seconds": 0.25}
    assert ran == ["step", "clock", "step", "clock"]


def test_json_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(made().to_json())
    assert records.read(path) == made()
    path.write_text("{}")
    with pytest.raises(FxApproxError, match="not a benchmark's JSON"):
        records.read(path)


def test_picture(tmp_path: Path) -> None:
    show.plot(made(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FxApproxError, match="cannot be written"):
        show.plot(made(), tmp_path / "bench.nothing")
