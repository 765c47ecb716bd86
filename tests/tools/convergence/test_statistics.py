"""The statistics of paired runs, against values worked out elsewhere."""

from __future__ import annotations

import math

import pytest

from tools.convergence.statistics import difference, drift, holm, margin


def test_interval_and_tests() -> None:
    found = difference([1.0, 2.0, 3.0, 4.0, 5.0], within=5.0)
    assert (found.pairs, found.mean) == (5, 3.0)
    half = 2.776445 * math.sqrt(2.5 / 5)  # Student's t, 4 degrees of freedom, 0.975
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert found.p_zero == pytest.approx(0.013236, abs=1e-5)  # t = 4.2426
    assert found.p_apart == pytest.approx(0.023710, abs=1e-5)  # t = 2.8284, one-sided


def test_both_margins_are_tested() -> None:
    low, high = difference([-3.0, -2.0, -1.0], 2.5), difference([3.0, 2.0, 1.0], 2.5)
    assert low.p_apart == pytest.approx(high.p_apart)
    assert difference([1.0, 2.0, 3.0], 1.0).p_apart > 0.5  # beyond the margin


def test_differences_that_are_all_the_same() -> None:
    assert difference([0.0, 0.0], 0.1).p_apart == 0
    assert difference([0.0, 0.0], 0.1).p_zero == 1
    assert difference([0.2, 0.2], 0.1).p_apart == 1
    assert difference([0.2, 0.2], 0.1).p_zero == 0


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_what_cannot_be_told_is_nan(values: list[float]) -> None:
    found = difference(values, 1.0)
    assert all(map(math.isnan, (found.low, found.high, found.p_zero, found.p_apart)))


def test_holm() -> None:
    """The example of R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.5, math.nan, 0.9])
    assert adjusted[::2] == [1.0, 1.0]
    assert math.isnan(adjusted[1])


def test_margin() -> None:
    assert margin([1.0, 2.0, 3.0], least=0.005) == 0.25
    assert margin([1.0, 1.0], least=0.005) == 0.005
    assert margin([1.0], least=0.005) == 0.005


def test_drift_is_that_of_the_second_half() -> None:
    assert drift([1, 2, 3, 4, 5, 6], [9.0, 9.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx(3.0)
    assert math.isnan(drift([1], [0.0]))
