"""The tables and curves of bits="auto"."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

import fxapprox
from fxapprox import Sensitivities
from tools import auto_bits, auto_curve
from tools.auto_curve import Curve
from tools.zoo import models
from tools.zoo.models import Case
from tools.zoo.training import step


def report(build: Callable[[], Case] = models.mlp_dropout, **options) -> fxapprox.Report:
    torch.compiler.reset()
    case = build()
    run = fxapprox.compile(case.model, lowering="eager", strict=True, min_bytes=0, **options)
    step(case, run)
    (found,) = fxapprox.reports(run)
    return found


def curves(losses: list[float]) -> dict[str, list[Curve]]:
    bits = (None, None, 4.0, 3.5, 3.0, 2.0)
    group = [Curve(mode, b, 2**20, losses) for mode, b in zip(auto_curve.MODES, bits, strict=True)]
    return {"one": group, "other": group}


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_policy_stores_everything_in_so_many_bits(bits: int) -> None:
    assert report(policy=auto_bits.all_in(bits)).average_bits == bits


def test_average_bits_are_weighted_by_elements_and_leave_exact_values_out() -> None:
    found = report(models.demo_resnet, bits={"*": 8, "blocks.0": 4})
    coded = [d for d in found.decisions if d.bits is not None]
    assert {d.bits for d in coded} == {4, 8}
    assert all(d.storage.startswith(f"{d.bits}-bit") for d in coded)
    elements = {bits: sum(math.prod(d.shape) for d in coded if d.bits == bits) for bits in (4, 8)}
    assert found.average_bits == pytest.approx((4 * elements[4] + 8 * elements[8]) / sum(elements.values()))
    assert report(bits=None).average_bits is None


def test_predicted_error_is_the_root_of_the_sum_of_squares() -> None:
    found = report(bits=4)
    names = [d.value for d in found.decisions if d.bits is not None]
    measured = Sensitivities(({name: {4: 0.01, 8: 1.0} for name in names},))
    assert auto_bits.predicted(found, measured) == pytest.approx(0.1 * math.sqrt(len(names)))
    assert auto_bits.predicted(found, Sensitivities(())) is None


def test_ways_offer_uniform_bits_where_they_exist() -> None:
    measured = Sensitivities(())
    assert list(auto_bits.ways([4, 3], measured)) == [
        "bits=4", "all in 4 bits", "auto, average 4, no batch", "auto, average 4, measured",
        "all in 3 bits", "auto, average 3, no batch", "auto, average 3, measured",
    ]  # fmt: skip
    assert [options["average_bits"] for options in auto_bits.ways([3.5], measured).values()] == [3.5, 3.5]


def test_calibration_sees_other_inputs_of_the_same_kind() -> None:
    images, tokens = torch.randn(4, 3), torch.arange(12).view(3, 4)
    found = auto_bits.others((images, tokens))
    assert found[0].shape == images.shape
    assert not torch.equal(found[0], images)
    assert found[1].shape == tokens.shape
    assert not torch.equal(found[1], tokens)
    assert found[1].flatten().sort().values.tolist() == list(range(12))


def test_averages_on_the_command_line() -> None:
    assert auto_bits.parse_averages("4, 2.5") == [4, 2.5]
    for text in ("", "many", "1", "4,9", "nan"):
        with pytest.raises(typer.BadParameter, match="from 2 to 8"):
            auto_bits.parse_averages(text)


def test_rows_are_markdown() -> None:
    assert str(auto_bits.Row("a", 0.0123, 2**20, 4.0, 0.01)) == "| a | 1.23% | 1.00% | 1.0 MiB | 4.00 |"
    assert str(auto_bits.Row("a", 0.0123, 2**20, 3.5)) == "| a | 1.23% |  | 1.0 MiB | 3.50 |"


def test_generated_text_follows_its_two_last_tokens() -> None:
    text = auto_curve.generate_text(200, 40, 8, seed=0)
    assert text.shape == (200, 40)
    assert torch.equal(text, auto_curve.generate_text(200, 40, 8, seed=0))
    assert text.unique().tolist() == list(range(8))
    for lag in (1, 2):
        pairs = torch.zeros(8, 8).index_put((text[:, 2 - lag : -lag].flatten(), text[:, 2:].flatten()),
                                            torch.ones(()), accumulate=True)  # fmt: skip
        assert float((pairs / pairs.sum(1, keepdim=True)).amax(1).mean()) > 0.25  # 1/8 if it did not matter


def test_smoothed_losses_are_means_of_the_last_ones() -> None:
    assert auto_curve.smooth([4.0, 2.0, 0.0, 4.0], steps=2) == [4.0, 3.0, 1.0, 2.0]


@pytest.mark.parametrize("losses", [[2.0, 1.5, 1.0], [2.0], [2.0, math.nan]], ids=["three", "one", "diverged"])
def test_curves_are_drawn_and_written(losses: list[float], tmp_path: Path) -> None:
    auto_curve.plot(curves(losses), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000
    record = json.loads(auto_curve.as_json(curves(losses)))
    assert list(record) == ["one", "other"]
    assert record["one"][0]["losses"][-1] == (None if math.isnan(losses[-1]) else losses[-1])


def test_the_table_compares_with_the_first_mode() -> None:
    group = curves([2.0, 1.0])["one"][1:3]
    group[1].losses = [2.0, 1.25]
    lines = auto_curve.table({"net": group}).splitlines()
    assert lines[2] == "| net | exact, nudged |  | 1.0 MiB | 1.0000 | +0.0000 |"
    assert lines[3] == "| net | auto, average 4 | 4.00 | 1.0 MiB | 1.2500 | +0.2500 |"
