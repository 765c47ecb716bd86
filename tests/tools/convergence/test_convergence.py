"""Paired runs of small tasks: what the command writes, and what all arms of a seed share."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tools.convergence import __main__ as command
from tools.convergence import data, networks
from tools.convergence.arms import ARMS
from tools.convergence.networks import Scores
from tools.convergence.records import Key, Run
from tools.convergence.run import run
from tools.convergence.task import Data, Place, Task
from tools.convergence.tasks import TASKS


def invoke(out: Path, *more: str):
    app = command.typer.Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, ["--out", str(out), *more])


def text(_: Place) -> Data:
    """A little text, over and over."""
    x, y = data.windows(b"the quick brown fox jumps over the lazy dog; " * 100, 16)
    return Data((x, y), (x[:8], y[:8]), "text")


def images(size: int, _: Place) -> Data:
    """Noise."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, size, size), torch.randint(10, (12,))
    return Data((x, y), (x[:4], y[:4]), "noise")


GPT = replace(TASKS["gpt"], data=text, network=lambda _: Scores(1, 32, 1, 16), batch=4, steps=6)


def made(task: Task, arm: str, out: Path, lowering: str = "eager") -> Run:
    key = Key("gpt", arm, 0, task.steps, "", lowering)
    return run(task, key, Place(out, out))


def test_digits_in_two_minutes(tmp_path: Path) -> None:
    options = "--tasks digits --seeds 2 --arms plain,exact,4-bits,naive --lowering eager --steps 80".split()
    result = invoke(tmp_path, *options)
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "runs.json").read_text())
    assert len(records) == 8
    runs = {(record["arm"], record["seed"]): record for record in records}
    for seed in (0, 1):
        plain, exact = runs["plain", seed], runs["exact", seed]
        assert exact["curve"] == plain["curve"]  # bit by bit
        assert plain["final"]["loss"] < 0.3
        assert plain["error"] is None
        assert exact["error"] == [0, 0, 0, 0]
        assert runs["4-bits", seed]["first"] == plain["first"]
        errors = runs["4-bits", seed]["error"], runs["naive", seed]["error"]
        assert all(0 < ours < naive for ours, naive in zip(*errors, strict=True))
    assert "| exact | 2 | +0.0000 [+0.0000, +0.0000] |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "digits-80-steps-eager.png").exists()
    before = (tmp_path / "runs.jsonl").read_text()
    assert [json.loads(line)["seed"] for line in before.splitlines()] == [0] * 4 + [1] * 4
    assert "8/8" in invoke(tmp_path, *options).output  # nothing is missing
    assert (tmp_path / "runs.jsonl").read_text() == before


@pytest.mark.parametrize("lowering", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_dropout_is_the_same_in_all_arms(lowering: str, tmp_path: Path, one_thread: None) -> None:
    plain, exact, coded = (made(GPT, arm, tmp_path, lowering) for arm in ("plain", "exact", "4-bits"))
    assert exact.first == coded.first == plain.first
    assert [p.train for p in exact.curve] == pytest.approx([p.train for p in plain.curve], rel=1e-6)
    if lowering == "eager":
        assert exact.curve == plain.curve
    assert coded.curve != plain.curve
    assert coded.error is not None
    assert all(error is not None and 0 < error < 0.5 for error in coded.error)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does, to trace it
@pytest.mark.parametrize("arm", ["all-3-bits", "nudged", "reordered", "gradients-4", "recomputed"])
def test_arms(arm: str, tmp_path: Path) -> None:
    plain, other = made(GPT, "plain", tmp_path), made(GPT, arm, tmp_path)
    same_start = arm in ("all-3-bits", "gradients-4", "recomputed")
    assert (other.first == plain.first) == same_start
    assert (other.curve == plain.curve) == (arm == "recomputed")
    assert (other.error is not None) == ARMS[arm].probed
    if other.error is not None:
        assert all(error is not None and error > 0.02 for error in other.error)


def test_adapters_are_trained_on_a_base_that_is_kept(tmp_path: Path) -> None:
    task = replace(TASKS["lora"], data=text, network=partial(networks.adapted, GPT), batch=4, steps=3)
    first = made(task, "plain", tmp_path)
    (base,) = tmp_path.glob("base-*.pt")
    written = base.stat().st_mtime_ns
    assert made(task, "plain", tmp_path).curve == first.curve
    assert base.stat().st_mtime_ns == written
    network = task.network(Place(tmp_path, tmp_path))
    assert {name.rsplit(".", 2)[-2] for name, p in network.named_parameters() if p.requires_grad} == {"up", "down"}


@pytest.mark.parametrize("name", ["cifar", "resnet-20", "resnet-18", "unet", "mlp", "gpt-124m"])
def test_the_other_tasks_run(name: str, tmp_path: Path) -> None:
    """On other data, the large ones narrower."""
    noise = images(16, Place(tmp_path, tmp_path))
    flat = Data((noise.train[0][:, :, :8, :8].flatten(1), noise.train[1]), noise.valid, "flat")
    flat = replace(flat, valid=(flat.train[0][:4], flat.train[1][:4]))
    clean = Data((noise.train[0],) * 2, (noise.valid[0],) * 2, "clean")
    small = {
        "unet": {"data": lambda _: clean},
        "mlp": {"data": lambda _: flat},
        "resnet-18": {"network": TASKS["cifar"].network},
        "gpt-124m": {"data": text, "network": lambda _: Scores(1, 32, 1, 16)},
    }
    task = replace(TASKS[name], batch=4, steps=2, **{"data": lambda _: noise, **small.get(name, {})})
    found = made(task, "4-bits", tmp_path)
    assert len(found.curve) == 2
    assert (found.accuracy is None) == (name == "unet")


def test_data_that_is_missing_is_named(tmp_path: Path) -> None:
    result = invoke(tmp_path / "out", "--tasks", "cifar", "--data", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "nowhere: no such directory" in result.output


def test_unknown_names(tmp_path: Path) -> None:
    assert invoke(tmp_path, "--tasks", "digit").exit_code == 2
    assert invoke(tmp_path, "--arms", "5-bits").exit_code == 2


def test_sources_are_split_by_file() -> None:
    found = data.sources(Place(Path(), Path()))
    assert found.train[0].shape[1] == 64
    assert torch.equal(found.train[0][0, 1:], found.train[1][0, :-1])
    assert len(found.valid[0]) == 1000 < len(found.train[0])
    assert len(found.digest) == 16
