"""Artifacts in torch's structured trace, and the log: what is in them, and that nothing is made where they are off."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.show import log

ARTIFACTS = ["fxapprox_decisions", "fxapprox_report", "fxapprox_forward", "fxapprox_backward", "fxapprox_timing"]
SCRIPT = """
import torch
from torch import nn

net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
options = {"bits": 4, "lowering": "eager"}
torch.compile(net, backend="fxapprox", options=options)(torch.randn(64, 64)).sum().backward()
"""


def run() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    fxapprox.compile(net, bits=4, lowering="eager")(torch.randn(64, 64)).sum().backward()


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fxapprox"]


def test_nothing_is_made_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise AssertionError("made, although nobody asked for it")

    monkeypatch.setattr(log, "artifacts", lambda *_: {"fxapprox_report": ("json", fail)})
    monkeypatch.setattr(log, "_line", fail)
    run()


def test_a_line_for_a_graph_at_info(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxapprox"):
        run()
    (line,) = ours(caplog)
    pattern = r"graph 0: stored 2\.1 KiB instead of 16\.0 KiB, peak .* KiB instead of .* KiB, planned in \d+\.\d\d s"
    assert re.fullmatch(pattern, line)


def test_a_line_for_a_decision_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "fxapprox"):
        run()
    _, first, *_, last = ours(caplog)
    assert first == "graph 0: relu in 1 float32[64, 64]: 4-bit zero, 16.0 KiB -> 2.1 KiB: linear, linear in aten.mm"
    assert re.match(r"graph 0: prepare \d\.\d{3} s, baseline ", last)


def test_trace_and_torch_logs(tmp_path: Path) -> None:
    """In a process of its own: torch reads both settings when it is imported."""
    script, trace = tmp_path / "script.py", tmp_path / "trace"
    script.write_text(SCRIPT)
    setting = {"TORCH_TRACE": str(trace), "TORCH_LOGS": "+fxapprox"}
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, **setting}, capture_output=True, text=True, check=True
    )
    assert "graph 0: stored 2.1 KiB instead of 16.0 KiB" in done.stderr
    assert "graph 0: relu in 1 float32[64, 64]: 4-bit zero" in done.stderr
    (file,) = trace.iterdir()
    found = dict(payloads(file.read_text()))
    assert [name for name in found if name.startswith("fxapprox")] == ARTIFACTS
    assert "4-bit zero" in found["fxapprox_decisions"]
    assert json.loads(found["fxapprox_report"])["saved_bytes"] == 2176
    assert "# graph 0: backward" in found["fxapprox_backward"]
    assert json.loads(found["fxapprox_timing"])["seconds"]["plan"] >= 0
    if tlparse := shutil.which("tlparse"):
        subprocess.run([tlparse, file, "-o", tmp_path / "out"], capture_output=True, check=True)
        shown = (tmp_path / "out" / "index.html").read_text()
        assert all(name in shown for name in ARTIFACTS)


def payloads(trace: str) -> list[tuple[str, str]]:
    """(name, content) of each artifact: a header line, then its payload, each line after a tab."""
    found = []
    for record in re.split(r"^(?=V\d{4} )", trace, flags=re.MULTILINE):
        header, _, payload = record.partition("\n")
        name = json.loads(header.partition("] ")[2]).get("artifact", {}).get("name") if header else None
        if name:
            found.append((name, "".join(line[1:] for line in payload.splitlines(keepends=True))))
    return found
