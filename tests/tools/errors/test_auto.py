"""The table of bits="auto"."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import typer

import fxapprox
from fxapprox import Sensitivities
from tools.errors import auto
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


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_policy_stores_everything_in_so_many_bits(bits: int) -> None:
    assert report(policy=auto.all_in(bits)).average_bits == bits


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
    assert auto.predicted(found, measured) == pytest.approx(0.1 * math.sqrt(len(names)))
    assert auto.predicted(found, Sensitivities(())) is None


def test_ways_offer_uniform_bits_where_they_exist() -> None:
    measured = Sensitivities(())
    assert list(auto.ways([4, 3], measured)) == [
        "bits=4", "all in 4 bits", "auto, average 4, no batch", "auto, average 4, measured",
        "all in 3 bits", "auto, average 3, no batch", "auto, average 3, measured",
    ]  # fmt: skip
    assert [options["average_bits"] for options in auto.ways([3.5], measured).values()] == [3.5, 3.5]


def test_calibration_sees_other_inputs_of_the_same_kind() -> None:
    images, tokens = torch.randn(4, 3), torch.arange(12).view(3, 4)
    found = auto.others((images, tokens))
    assert found[0].shape == images.shape
    assert not torch.equal(found[0], images)
    assert found[1].shape == tokens.shape
    assert not torch.equal(found[1], tokens)
    assert found[1].flatten().sort().values.tolist() == list(range(12))


def test_averages_on_the_command_line() -> None:
    assert auto.parse_averages("4, 2.5") == [4, 2.5]
    for text in ("", "many", "1", "4,9", "nan"):
        with pytest.raises(typer.BadParameter, match="from 2 to 8"):
            auto.parse_averages(text)


def test_rows_are_markdown() -> None:
    assert str(auto.Row("a", 0.0123, 2**20, 4.0, 0.01)) == "| a | 1.23% | 1.00% | 1.0 MiB | 4.00 |"
    assert str(auto.Row("a", 0.0123, 2**20, 3.5)) == "| a | 1.23% |  | 1.0 MiB | 3.50 |"
