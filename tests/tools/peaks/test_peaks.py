"""The table of real peaks: one small model in all systems, a process that dies, the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tools.harness import Failed
from tools.peaks import __main__ as peaks
from tools.peaks import measure, models
from tools.peaks.measure import Bench, Row
from tools.peaks.models import Model, started, why_not
from tools.peaks.results import MIB, table
from tools.zoo.models import Case, benchmarks

PLAIN = Row(
    "vit", "plain", "", peak=100 * MIB, kept=5 * MIB, loss="0x1p+0", seconds=[2.0, 4.0, 2.0],
    plain_seconds=[2.0, 4.0, 2.0],
)  # fmt: skip
OURS = replace(
    PLAIN, system="fxapprox-4", peak=25 * MIB, predicted=26 * MIB, predicted_plain=99 * MIB, gradient_error=0.05,
    seconds=[3.0, 5.0, 2.0], plan="2 parts in slices",
)  # fmt: skip
FAILED = Row("vit", "auto-chunker", "", failed="no | way")


def test_one_model_in_all_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Model(
        "a head", lambda: benchmarks.wide_head(64, 16, 512), head=models.MODELS["wide-head"].head,
        layers=lambda model: [model.mlp],
    )  # fmt: skip
    monkeypatch.setitem(models.MODELS, "small", small)
    bench = Bench("small")
    wanted = ["fxapprox-4", "plain", "linear-cross-entropy", "checkpoint"]
    rows = {row.system: row for row in map(bench.row, wanted)}
    assert not any(row.failed for row in rows.values())
    assert all(0 < row.kept <= row.peak for row in rows.values())
    assert rows["plain"].gradient_error == 0
    assert rows["linear-cross-entropy"].gradient_error < 1e-5 > rows["checkpoint"].gradient_error
    assert rows["fxapprox-4"].predicted
    assert not rows["plain"].predicted
    seconds = bench.in_turns(3)
    assert {system: len(laps) for system, laps in seconds.items()} == dict.fromkeys(wanted, 3)


def test_what_raises_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Case:
        raise ValueError("no such thing\nat all")

    monkeypatch.setitem(models.MODELS, "absent", Model("absent", absent))
    assert Bench("absent").row("plain").failed == "ValueError: no such thing"
    assert Bench("absent").in_turns(2) == {}
    assert Bench("absent").row("checkpoint").failed == "no blocks"
    assert why_not(models.MODELS["vit"], "linear-cross-entropy")


def test_what_died_is_a_row_and_what_ran_before_has_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcomes(function: str, items: list[str], **rest) -> list:
        assert items == ["plain", "auto-chunker", "fxapprox-4", ""]
        rows = [measure.asdict(replace(row, seconds=[], plain_seconds=[])) for row in (PLAIN, OURS)]
        return [rows[0], Failed("process", "it died"), rows[1], {"plain": [1.0], "fxapprox-4": [2.0]}]

    monkeypatch.setattr(peaks, "outcomes", outcomes)
    peaks.main(tmp_path, "vit", "plain,auto,fxapprox-4")
    rows = {row.system: row for row in peaks.saved(tmp_path)}
    assert rows["auto-chunker"].failed == "it died"
    assert rows["fxapprox-4"].seconds == [2.0]
    assert "| it died |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "peaks.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(peaks, "outcomes", None)
    peaks.main(tmp_path, "vit", "plain,auto,fxapprox-4")  # all of it is there


def test_table() -> None:
    other = replace(OURS, system="fxapprox-8", loss="0x1p+1")
    lines = table([FAILED, OURS, PLAIN, other]).splitlines()
    (summary,) = (line for line in lines if line.startswith("| vit |"))
    assert summary.startswith("| vit | 100.0 | - |")
    assert "| 0.250 |" in summary
    assert "| torch.compile | 100.0 | 1.000 | 0.050 | 0.00% | 1.00 (1.00 to 1.00) | 99.0 | 0.990 |  |" in lines
    assert (
        "| fxapprox, 4 bits | 25.0 | 0.250 | 0.050 | 5.00% | 1.25 (1.00 to 1.50) | 26.0 | 1.040 | 2 parts in slices |"
        in lines
    )
    assert any("| no / way |" in line for line in lines)
    assert any("; loss 2.000 for 1.000 |" in line for line in lines)


def test_heads_have_the_loss_of_their_models() -> None:
    gpt2 = lambda: benchmarks.gpt2(layers=1, width=64, vocab=96, batch=2, length=16)  # noqa: E731
    made = [
        Model("", gpt2, head=models.MODELS["gpt2"].head),
        Model("", lambda: benchmarks.labelled(gpt2()), head=models.MODELS["gpt2-trainer"].head, apart=True),
    ]
    for model in made:
        plain, head = started(model, "checkpoint"), started(model, "linear-cross-entropy")
        with torch.no_grad():
            assert torch.allclose(plain.run(*plain.step.args), head.step(*head.step.args))


def test_adapters_beside_all_projections() -> None:
    case = benchmarks.with_adapters(benchmarks.llama(layers=1, width=64, vocab=96, batch=2, length=16))
    trained = [name for name, p in case.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7
    assert isinstance(case.model.lm_head, nn.Linear)
