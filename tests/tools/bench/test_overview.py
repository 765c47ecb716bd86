"""What the CPU benchmark says of its results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fxapprox.bench.records import Bench, Record
from tools.bench import __main__ as bench
from tools.bench import models


def made(rival_peak: int) -> Bench:
    loss = (2.5).hex()
    return Bench("m", "CPU", "2.13.0", 2, "float64", (
        Record("compile", 100, 100, 100, 20.0, (0.2, 0.2), 1e-7, loss),
        Record("checkpoint", 30, 30, rival_peak, 1.0, (0.3, 0.3), 1e-7, loss),
        Record("fp8", 40, 40, 80, 25.0, (0.2, 0.3), 0.13, loss),
        Record("fxapprox-8", 30, 30, 60, 24.0, (0.2, 0.2), 0.01, loss),
        Record("fxapprox-4", 15, 15, 40, 26.0, (0.22, 0.22), 0.1, loss),
    ))  # fmt: skip


def test_rivals_with_a_point_of_their_own() -> None:
    assert bench.rivals_ahead(made(50)) == []
    assert [r.system for r in bench.rivals_ahead(made(39))] == ["checkpoint"]


def test_a_rival_that_is_only_faster_is_told_apart() -> None:
    found = made(50)
    slower = tuple(
        replace(r, step_seconds=tuple(1.5 * t for t in r.step_seconds)) if r.system.startswith("fxapprox") else r
        for r in found.records
    )
    row = bench.overview({"vit": replace(found, records=slower)}).splitlines()[2]
    assert row.endswith("| torch.compile (faster); eager, checkpoints; torch.compile, fp8 (faster) |")


def test_overview(tmp_path: Path) -> None:
    out = tmp_path / "cpu"
    out.mkdir()
    for model in ("vit", "bert"):
        (out / f"{model}.json").write_text(made(39).to_json())
    bench.write_results(out)
    lines = (tmp_path / "cpu.md").read_text().splitlines()
    row = "| vit | 1.00x | 1.10x | 1.20x | 1.30x | 0.60 | 0.40 | 1.00% | 13.00% | eager, checkpoints |"
    assert row in lines
    step = "a step takes 1.00x (median over models), 1.00x at most"
    assert f"- fxapprox, 8 bits: {step}; compiling takes 1.20x at most." in lines
    assert lines[2].startswith(f"`python -m tools.bench --out {out.as_posix()} --systems compile,")
    assert sum(line.startswith("## m") for line in lines) == 2
    assert "![time and peak of bert](cpu/bert.png)" in lines


def test_models_are_targets() -> None:
    assert set(models.MODELS) <= set(vars(models))
