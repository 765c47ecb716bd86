"""The command line, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxapprox import OptionError
from fxapprox.cli import app
from fxapprox.options import parse

FACTORY = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return net, (torch.randn(8, 3, 16, 16),), lambda out: out.square().mean()

def dense():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    return net, (torch.randn(64, 64),), lambda out: out.square().mean()

def number():
    return 3

def broken():
    raise ValueError("no weights")
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "factory.py"
    path.write_text(FACTORY)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fxapprox", *args])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    return int(stopped.value.code or 0)


def test_table(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--bits", "4") == 0
    assert "4-bit threshold" in capsys.readouterr().out


def test_json(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["saved_bytes"] > 0


@pytest.mark.parametrize(("format", "begins"), [("html", "<!doctype html>"), ("trace", '{"traceEvents": [')])
def test_files(
    format: str, begins: str, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--format", format) == 0
    text = capsys.readouterr().out
    assert text.startswith(begins)
    assert run(monkeypatch, "dump", f"{target}:make", "--format", format, "--out", "report") == 0
    assert capsys.readouterr().out == ""
    assert len(Path("report").read_text()) == pytest.approx(len(text), rel=0.01)


def test_out_wants_a_format_of_files(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--out", "report.txt") == 2
    assert "--out goes with --format html or trace" in " ".join(capsys.readouterr().err.split())


def test_fx(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "fx", "--stage", "backward") == 0
    out = capsys.readouterr().out
    assert out.startswith("# backward:")
    assert "convolution_code_0: u8[" in out
    assert "dequantize(convolution): f32[8, 8, 14, 14] = from 8-bit threshold (convolution_code_0, " in out
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "fx", "--stage", "backward", "--raw") == 0
    assert "def forward(self" in capsys.readouterr().out


def test_graphs_as_passes_leave_them(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = ("--stage", "after:partition", "--stage", "after:pin inputs")
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "fx", *stages) == 0
    parts = f"\n{capsys.readouterr().out}".split("\n# ")
    titles = [f"{half} after {name}\n" for name in ("partition", "pin inputs") for half in ("forward", "backward")]
    found = [next(part for part in parts if part.startswith(title)) for title in titles]
    assert ["to 8-bit threshold" in part for part in found] == [False, False, True, False]
    assert ["from 8-bit threshold" in part for part in found] == [False, False, False, True]
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "fx", "--raw", *stages) == 0
    assert capsys.readouterr().out.count("def forward(self") == 4
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "dot", *stages) == 0
    assert "forward after pin inputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stage", "message"),
    [("middle", "--stage middle: expected one of joint, plan, forward, backward, or after:PASS"),
     ("after:coding", "no pass 'coding' has two graphs to show; expected one of partition, find images, encode, "),
     ("after:checkpoint", "--stage after:checkpoint: with these options, this pass does not run")],
)  # fmt: skip
def test_stages_that_there_are_not(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str, message: str
) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "fx", "--stage", stage) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_dot(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "dot") == 0
    out = capsys.readouterr().out
    assert out.startswith("digraph")
    assert "8-bit threshold" in out
    assert "label=plan" in out.replace('"', "")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--stage", "joint"], "--stage belongs to --format fx or dot"),
     (["--format", "json", "--stage", "plan"], "--stage belongs to --format fx or dot"),
     (["--format", "dot", "--raw"], "--raw belongs to --format fx"),
     (["--format", "json", "--all"], "--all belongs to the table")],
)  # fmt: skip
def test_options_of_other_formats(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_models_on_the_meta_device(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target.write_text(
        FACTORY + "\ntorch.set_default_device('meta')\nmade = make()\ntorch.set_default_device(None)\n"
        "def on_meta():\n    return made\n"
    )
    assert run(monkeypatch, "dump", f"{target}:on_meta", "--bits", "4") == 0
    assert "4-bit threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "says"),
    [("factory.py", "names no factory"), ("absent.py:make", "no such file"), ("factory.py:absent", "has no function"),
     ("factory.py:number", "returned an int"), ("factory.py:broken", "ValueError: no weights"),
     ("no.such.module:make", "no module named")],
)  # fmt: skip
def test_bad_targets(
    spec: str, says: str, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dump", spec) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_bad_bits(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--bits", "3") == 2
    assert "expected 8, 4, 2, exact or auto" in capsys.readouterr().err


def test_bits_by_module(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--bits", "0=2,*=8") == 0
    assert "2-bit threshold" in capsys.readouterr().out
    assert run(monkeypatch, "dump", f"{target}:make", "--bits", "7=2") == 2
    assert "no module of the model matches '7'" in capsys.readouterr().err


def test_bits_chosen_by_themselves(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("dump", f"{target}:make", "--bits", "auto", "--format", "json", "--average-bits")
    sizes = []
    for average in ("3", "8"):
        assert run(monkeypatch, *arguments, average) == 0
        sizes.append(json.loads(capsys.readouterr().out)["saved_bytes"])
    assert sizes[0] < sizes[1]
    assert run(monkeypatch, *arguments, "33") == 2
    assert "a number from 2 to 32" in capsys.readouterr().err


def test_help_has_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("dump", "demo", "audit", "fit"):
        assert run(monkeypatch, command, "--help") == 0
        assert "Examples:" in capsys.readouterr().out


def test_symbolic_sizes(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("dump", f"{target}:make", "--dynamic", "--format", "json")
    assert run(monkeypatch, *arguments) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [s["source"] for s in planned["sizes"]] == ["input.size(0)", "input.size(2) = input.size(3)"]
    names = [s["name"] for s in planned["sizes"]]
    assert run(monkeypatch, *arguments, "--size", f"{names[0]}=4,{names[1]}=16") == 0
    half = json.loads(capsys.readouterr().out)
    assert half["sizes"][0]["hint"] == 4
    assert half["saved_bytes"] < planned["saved_bytes"] < 2 * half["saved_bytes"]
    assert half["saved_expr"] == planned["saved_expr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "8"), "dynamic=True"),
        (("--dynamic", "--size", "8"), "several sizes"),
        (("--dynamic", "--size", "many"), "expected a number"),
        (("--dynamic", "--size", "8,s7=3"), "expected a number"),
    ],
)
def test_sizes_are_checked(
    arguments: tuple[str, ...],
    message: str,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", *arguments) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_checkpoints_and_budget(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--bits", "exact", "--checkpoint", "2") == 0
    assert "checkpoints: backward computes" in capsys.readouterr().out
    assert run(monkeypatch, "dump", f"{target}:dense", "--memory-budget", "1") == 0
    assert "stored for backward: 32.0 KiB; plain torch.compile: 32.0 KiB" in capsys.readouterr().out
    assert run(monkeypatch, "dump", f"{target}:make", "--memory-budget", "1MiB") == 0
    assert "chosen by the memory budget: exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--memory-budget", "0.001"], "The smallest budget that can be met is"), (["--memory-budget", "1.5"], "up to 1"),
     (["--memory-budget", "much"], "expected an amount"), (["--memory-budget", "0.5", "--bits", "4"], "leave out bits"),
     (["--checkpoint", "many"], "a number of segments"), (["--checkpoint-bits", "3"], "expected 8, 4 or exact"),
     (["--pareto", "absent/p.png"], "cannot be written")],
)  # fmt: skip
def test_bad_budgets(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    assert run(monkeypatch, "dump", f"{target}:make", *options) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "TORCHDYNAMO" not in error


def test_pareto_is_printed_and_drawn(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dump", f"{target}:make", "--format", "json", "--pareto", "costs.png") == 0
    printed = capsys.readouterr()
    assert "plain torch.compile" in printed.err
    assert json.loads(printed.out)["peak_bytes"] > 0
    assert Path("costs.png").read_bytes().startswith(b"\x89PNG")


def test_audit(target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "audit", f"{target}:make", "--bits", "4", "--batches", "2", "--min-bytes", "0") == 0
    out = capsys.readouterr().out
    assert "gradients against exact mode, one batch; noise and bias from 2 parts of it" in out
    assert "Use 4 bits: " in out
    assert max(map(len, out.splitlines())) <= 100
    assert run(monkeypatch, "audit", f"{target}:make", "--bits", "exact", "--batches", "1", "--format", "json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["settings"][0]["total"]["error"] == 0
    assert content["parts"] == 0
    assert run(monkeypatch, "audit", f"{target}:make", "--bits", "8,3") == 2
    assert "--bits 8,3: expected some of 8, 4, 2, exact and auto" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("path", ["", "absent/report", "/dev/full", "n" * 300])
def test_out_that_cannot_be_written(
    path: str, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dump", f"{target}:dense", "--format", "html", "--out", path) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_standard_output_on_a_full_disk(target: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from fxapprox.cli.app import main; main()", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("fxapprox: standard output cannot be written to")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "1.5", "s=", "=", "=4", "s=4,s=5", "4,5", "s=4,5", "9" * 5000, "s=\N{SUPERSCRIPT TWO}"],
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="--size"):
        parse.parse_size(text)
    assert parse.parse_size(" 64 ") == 64
    assert parse.parse_size("s77 = 64, s12=128") == {"s77": 64, "s12": 128}


def test_a_pattern_stands_once() -> None:
    with pytest.raises(OptionError, match="expected each pattern once"):
        parse.parse_bits("*=4,head=8,*=8")
