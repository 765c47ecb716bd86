"""The budget benchmark's pure parts: record files, choosing settings, tables, regions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from tools.budget import measure, models, records, results, turns
from tools.budget.records import Record, refused

PLAIN = Record("unet", "plain", "", stored=800, peak=1000, loss="0x1p+0", compile_seconds=3, step_seconds=2)


def ours(setting: str, peak: int, seconds: float, key: str = "", **given) -> Record:
    key = key or setting
    return replace(PLAIN, system="fxapprox", setting=setting, peak=peak, step_seconds=seconds, plan_key=key, **given)


def test_records_come_back_from_their_files_largest_budget_first(tmp_path: Path) -> None:
    found = [PLAIN, ours("0.9", 900, 1), ours("0.25", 250, 2, predicted=240), Record("vit", "plain", "", failed="no")]
    for record in reversed(found):
        records.save(record, tmp_path)
    assert records.saved(tmp_path) == [*found[1:3], PLAIN, found[3]]
    assert records.path_of(found[1], tmp_path).name == "unet--fxapprox--0.9.json"
    assert not records.of(found, "vit", "plain"), "it failed"


def test_a_plan_is_measured_once() -> None:
    first = ours("0.3", 300, 2, "k")
    copy = ours("0.25", 300, 2, "k", measured_at="0.3")
    assert records.same_plan([copy, first], "k") == first
    assert records.same_plan([copy, first], "other") is None
    assert records.within([first, copy], 300) == [first]


def test_below_a_budget_that_was_refused_nothing_is_tried() -> None:
    known = Record("m", "fxapprox", "0.5", failed="OptionError: memory_budget: ... The smallest budget is 0.6")
    assert refused([known], Record("m", "fxapprox", "0.4")) is known
    for other in (Record("m", "fxapprox", "0.7"), Record("n", "fxapprox", "0.4"), Record("m", "torch-budget", "0.4")):
        assert refused([known], other) is None
    assert refused([Record("m", "fxapprox", "0.5", failed="not done")], Record("m", "fxapprox", "0.4")) is None


def test_candidates_fit_the_largest_budget_and_are_timed_once() -> None:
    found = [PLAIN, ours("0.5", 390, 1), ours("0.4", 390, 2), ours("0.3", 290, 0), ours("0.9", 900, 1)]
    assert turns.candidates(found, "unet") == [PLAIN, found[1], found[3]]


def test_table_of_times_has_the_fastest_that_fits() -> None:
    other = replace(PLAIN, system="torch-budget", setting="0.2", peak=390)
    found = [PLAIN, ours("0.5", 390, 1), ours("0.4", 380, 1), other]
    seconds = {
        "unet--plain": [2.0, 4.0, 2.0], "unet--fxapprox--0.5": [1.0, 4.0, 1.2], "unet--fxapprox--0.4": [2.0, 4.0, 2.2],
        other.name: [3.0, 6.0, 3.2],
    }  # fmt: skip
    content = {"records": [turns.asdict(r) for r in found], "seconds": seconds}
    lines = turns.table("unet", content).splitlines()
    assert "| 0.4 | **0.60** (0.50 to 1.00), at 0.5 | 1.50 (1.50 to 1.60), at 0.2 | nothing fits |" in lines
    assert "| 0.3 | nothing fits | nothing fits | nothing fits |" in lines


def test_table_of_a_model() -> None:
    failed = Record("unet", "torch-budget", "0.1", failed="a | b")
    found = [PLAIN, ours("0.5", 400, 3, predicted=440), ours("0.4", 410, 3), failed]
    lines = results.section("unet", found).splitlines()
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {12}, "one number of cells in each row"
    (row,) = (line for line in lines if line.startswith("| fxapprox | 0.5"))
    assert "| 0.400 |" in row
    assert "| +10.0% |" in row
    assert "| same | 3 |" in row
    assert any("failed: a / b" in line for line in lines)
    assert "fxapprox: the real peak rises from 0.5 to 0.4 by 2.50%." in lines


def test_results_are_written_from_the_records(tmp_path: Path) -> None:
    results.write_results([PLAIN, ours("0.5", 400, 3, predicted=440), replace(PLAIN, model="vit")], tmp_path)
    assert (tmp_path / "table.md").read_text().count("## ") == 2
    with Image.open(tmp_path / "budget.png") as image:
        assert image.width > 1000


@pytest.mark.parametrize("layers", [nn.ModuleList, nn.Sequential])
def test_regions_compute_what_their_layers_do(layers: type) -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(5)]
    chain = nn.ModuleList(parts) if layers is nn.ModuleList else nn.Sequential(*parts)
    x = torch.randn(3, 4)

    def run() -> tuple[Tensor, Tensor]:
        h = x.clone().requires_grad_()
        out = h
        for layer in chain:
            out = layer(out)
        out.sum().backward()
        assert h.grad is not None
        return out, h.grad

    exact = run()
    models.in_regions(chain, 2)
    assert len(chain) == 3
    assert all(torch.equal(a, b) for a, b in zip(run(), exact, strict=True))


@pytest.mark.parametrize("model", ["unet", "vit"])
def test_checkpoints_leave_the_gradients_as_they_are(model: str) -> None:
    exact = models.build(model)
    exact(*exact.args).backward()
    for setting in models.MODELS[model].checkpoints:
        step = models.build(model)
        run, _ = models.runner(model, "checkpoint", setting, step)
        run(*step.args).backward()
        assert torch.equal(measure.gradients(step), measure.gradients(exact))


def test_a_failure_is_recorded_with_its_message(tmp_path: Path) -> None:
    record = Record("unet", "checkpoint", "absent")
    found = records.in_process("tools.budget.measure:records", record, 300, out=str(tmp_path))
    assert replace(found, failed="") == record
    assert "absent" in found.failed


def test_a_stepper_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"unet--checkpoint--absent: .*absent"):
        turns.Stepper(Record("unet", "checkpoint", "absent"))


def test_settings_take_turns() -> None:
    found = [Record("unet", "checkpoint", setting) for setting in models.MODELS["unet"].checkpoints]
    seconds = turns.in_turns(found, 3, Console(quiet=True))
    assert {name: len(rounds) for name, rounds in seconds.items()} == {r.name: 3 for r in found}
    assert all(lap > 0 for rounds in seconds.values() for lap in rounds)
