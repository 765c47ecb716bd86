"""dump of a model that no machine here could hold: a screenful."""

from __future__ import annotations

import sys

import pytest

from fxapprox.cli import app
from tools.zoo import models

SCREEN = 40  # lines
COLUMNS = 100


def gpt3_of_3_layers() -> tuple:
    return models.gpt3(layers=3)


def dumped(factory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setattr(sys, "argv", ["fxapprox", "dump", factory, "--bits", "4"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert not stopped.value.code
    return capsys.readouterr().out.splitlines()


def test_layers_are_folded_to_one_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dumped("tests.cli.test_dump_large:gpt3_of_3_layers", monkeypatch, capsys)
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= COLUMNS
    assert any("blocks.0-2.mlp.0" in line for line in lines)


@pytest.mark.slow
def test_96_layers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dumped("tools.zoo.models:gpt3", monkeypatch, capsys)
    assert len(lines) <= SCREEN
    assert lines[0].startswith("stored for backward: ")
    assert any("addmm_2 ×96" in line and "blocks.0-95.mlp.0" in line for line in lines)
