"""The tool that times codecs; its numbers are no test's business."""

from __future__ import annotations

import pytest
from typer import Typer
from typer.testing import CliRunner

from tools.profile import codecs

app = Typer()
app.command()(codecs.main)


@pytest.mark.inductor
def test_a_row_for_each_codec_that_was_asked_for() -> None:
    result = CliRunner().invoke(app, ["--codecs", "group,mask", "--bits", "1", "--rounds", "3"])
    assert result.exit_code == 0, result.output
    head, rule, row = result.output.strip().splitlines()[-3:]
    assert head == "| codec | bits | encode | decode |"
    assert set(rule) <= set("|-:")
    assert row.startswith("| mask | 1 | ")


def test_bits_that_a_codec_does_not_have_are_refused() -> None:
    result = CliRunner().invoke(app, ["--codecs", "mask", "--bits", "4"])
    assert result.exit_code == 2
    assert "no codec matching 'mask' has 4 bits" in result.output.replace("\n", " ")


def test_a_carriers_decision_reaches_the_gradient() -> None:
    case = codecs.zero(8)
    value, upper = case.decode(case.encode(case.value))
    assert (upper == (case.value > 0)).all()
    assert ((value - case.value).norm() < 0.01 * case.value.norm()).item()
