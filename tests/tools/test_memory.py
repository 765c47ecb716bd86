"""The tool that measures a training step by setting: its settings, its table, and one small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxapprox import OptionError
from tools import memory
from tools.budget.records import Record
from tools.zoo.models import benchmarks

MIB = memory.MIB


@pytest.mark.parametrize(
    ("setting", "options"),
    [("4", {"bits": 4, "checkpoint": None}), ("exact", {"bits": None, "checkpoint": None}),
     ("4+sqrt", {"bits": 4, "checkpoint": "sqrt"}), ("8+12", {"bits": 8, "checkpoint": 12})],
)  # fmt: skip
def test_settings(setting: str, options: dict) -> None:
    assert memory.options_of(setting) == options


@pytest.mark.parametrize("setting", ["3", "4+many", "+sqrt", ""])
def test_unknown_settings(setting: str) -> None:
    with pytest.raises(OptionError):
        memory.options_of(setting)


@pytest.mark.parametrize("setting", ["plain", "4", "4+sqrt"])
def test_a_small_network(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory.MODELS, "resnet-164", (lambda batch: benchmarks.preact(11, batch, bottleneck=True), 2))
    record = memory.measure("resnet-164", "eager", setting)
    assert 0 < record.stored < record.peak
    assert record.name == f"resnet-164--eager--{setting}"
    assert (record.predicted is None) == (setting == "plain")


def test_table_is_against_plain_in_the_same_lowering() -> None:
    plain = Record("resnet-164", "eager", "plain", stored=400 * MIB, peak=500 * MIB, step_seconds=3)
    coded = Record(
        "resnet-164", "eager", "4", stored=40 * MIB, peak=100 * MIB, predicted=90 * MIB, predicted_plain=480 * MIB
    )
    failed = Record("resnet-164", "eager", "2", failed="no")
    lines = memory.table([coded, failed, plain]).splitlines()
    assert lines[2] == "| resnet-164, batch 32 | eager | plain | 400.0 | 1.0 | 500.0 | 1.0 | 480.0 | 0.00% | 3.00 |"
    assert lines[3] == "| resnet-164, batch 32 | eager | 4 | 40.0 | 10.0 | 100.0 | 5.0 | 90.0 | 0.00% | 0.00 |"
    assert "failed: no" in lines[4]
    assert {line.count("|") for line in lines} == {11}


def test_records_are_written_by_a_process_of_their_own(tmp_path: Path) -> None:
    memory.main(tmp_path, "164", "plain", limit=0.1)
    assert "failed: not done after 0 s" in (tmp_path / "table.md").read_text()
