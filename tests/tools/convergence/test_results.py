"""Runs in files and in tables, without training any."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tools.convergence import records
from tools.convergence.plot import plot
from tools.convergence.records import Point, Run
from tools.convergence.results import compared, groups, table
from tools.harness import ResultsError

PLAIN = Run(
    "digits", "plain", 0, 2, "abc", "eager", "0x1p+0", {"loss": 1.0, "accuracy": 0.5},
    [Point(1, 2.0, 1.5, 0.4), Point(2, 1.5, 1.0, 0.5)], 1.0, 2.0, None, None, None,
)  # fmt: skip


def others(arm: str, gaps: list[float], first: str = PLAIN.first) -> list[Run]:
    """An arm's runs, so much worse than the reference."""
    return [
        replace(
            PLAIN, arm=arm, seed=seed, seconds=2.0, first=first, final={"loss": 1.0 + gap, "accuracy": 0.5},
            curve=[Point(1, 2.0, 1.5, 0.4), Point(2, 1.5, 1.0 + gap, 0.5)],
            error=[0.1, 0.2, 0.3, 0.4], noise=[0.5, None, 0.5, 0.5], bias=[0.01] * 4,
        )
        for seed, gap in enumerate(gaps)
    ]  # fmt: skip


RUNS = [
    *(replace(run, seconds=1.0, error=None) for run in others("plain", [0.0, 0.0, 0.0, 0.0])),
    *others("4-bits", [0.0001, 0.0002, 0.0001, 0.0]),
    *others("2-bits", [0.1, 0.2, 0.1, 0.2]),
    *others("naive", [0.3, 0.4, 0.3, 0.4], first="0x1.1p+0"),
    *others("all-3-bits", [0.0, 0.001, 0.0, 0.001]),
]


def test_verdicts() -> None:
    verdicts = {arm.arm: arm.verdict for arm in compared(RUNS)}
    assert verdicts == {
        "4-bits": "equivalent",
        "2-bits": "not shown to be equivalent, worse",
        "naive": "fails, as it must",
        "all-3-bits": "NOT SHOWN TO FAIL",
    }
    broken = [replace(run, final={"loss": math.nan, "accuracy": None}) for run in others("naive", [0.0, 0.0])]
    assert compared([*RUNS[:4], *broken])[0].verdict == "diverged, as it must fail"
    assert compared([*RUNS[:4], *others("4-bits", [0.0])])[0].verdict == "too few pairs"


def test_runs_on_other_data_are_never_paired() -> None:
    foreign = [replace(run, data="def") for run in others("8-bits", [0.0, 0.0])]
    assert len(groups([*RUNS, *foreign])) == 2
    assert "no runs of torch.compile to compare with" in table(foreign)
    assert all(arm.arm != "8-bits" for arm in compared(groups([*RUNS, *foreign])["digits", 2, "abc", "eager"]))


def test_table() -> None:
    lines = table(RUNS).splitlines()
    assert "torch.compile: loss 1.0000, deviation 0.0000 over 4 seeds, accuracy 50.00%. Margin: 0.0050." in lines[2]
    (four,) = (line for line in lines if line.startswith("| 4 bits | 4 |"))
    assert four.startswith("| 4 bits | 4 | +0.0001 [-0.0000, +0.0002] |")
    assert four.endswith("| +0.00 [+0.00, +0.00] | +0.0001 [-0.0000, +0.0002] | 2.00x | equivalent |")
    assert any(line.startswith("| 4 bits, decisions taken again (first loss: other bits) | 4 |") for line in lines)
    assert "| 2 bits | 10%, 20%, 30%, 40% | 50%, -, 50%, 50% | 1%, 1%, 1%, 1% |" in lines


def test_picture(tmp_path: Path) -> None:
    plot(RUNS, tmp_path / "digits.png")
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_killed_is_all_that_is_lost(tmp_path: Path) -> None:
    diverged = replace(PLAIN, final={"loss": None, "accuracy": None}, curve=[Point(1, math.nan, math.inf, None)])
    records.append(diverged, tmp_path)
    records.append(RUNS[-1], tmp_path)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"task": "dig')
    assert records.recorded(tmp_path)[1] == RUNS[-1]
    assert math.isnan(records.merge(tmp_path)[0].loss)
    records.append(PLAIN, tmp_path)  # behind what was cut off
    assert {run.key for run in records.recorded(tmp_path)} == {PLAIN.key, RUNS[-1].key}
    (tmp_path / "runs.jsonl").write_text('nonsense\n{"task": "dig')
    with pytest.raises(ResultsError, match="line 1 is damaged"):
        records.recorded(tmp_path)
