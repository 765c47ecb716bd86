"""Which codec a value gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxapprox.codecs import (
    Codec,
    Complex,
    Copy,
    Exact,
    Group,
    Identity,
    Integer,
    Mask,
    Need,
    Standard,
    Threshold,
    Zero,
)
from fxapprox.codecs.choose import CODED, FEWEST, LEAST_BITS, TABLE, Class, Traits, choose, lossless

REAL = frozenset((Need.REAL,))
DECIDED = REAL | {Need.DECISION}
NORMED = REAL | {Need.STATISTICS}


@pytest.mark.parametrize(
    ("kind", "given", "codec"),
    [(Class.LINEAR, {}, Group(4)), (Class.ATTENTION, {"rounding": "stochastic"}, Group(4, "stochastic")),
     (Class.SOFTMAX, {}, Group(4, uniform=True)), (Class.LINEAR, {"nonnegative": True}, Group(4, uniform=True)),
     (Class.SOFTMAX, {"weights": True, "nonnegative": True}, Group(4, skewed=True)),
     (Class.SOFTMAX, {"weights": True, "rounding": "stochastic"}, Group(4, "stochastic", uniform=True)),
     (Class.SMOOTH, {"saturates": True}, Group(4, hollow=True)), (Class.LINEAR, {"saturates": True}, Group(4)),
     (Class.LINEAR, {"offers": NORMED}, Standard(4)), (Class.ATTENTION, {"offers": NORMED}, Group(4)),
     (Class.SMOOTH, {"offers": NORMED, "rounding": "stochastic"}, Group(4, "stochastic")),
     (Class.LINEAR, {"offers": DECIDED | NORMED}, Threshold(4)),
     (Class.LINEAR, {"offers": DECIDED | {Need.RECTIFIER}, "nonnegative": True}, Zero(4)),
     (Class.SMOOTH, {"offers": frozenset((Need.COMPLEX,))}, Complex(4))],
)  # fmt: skip
def test_the_first_row_that_fits_counts(kind: Class, given: dict[str, Any], codec: Codec) -> None:
    assert choose(Traits(kind, 4, **{"rounding": "nearest", "offers": REAL, **given})) == codec


def test_every_row_is_of_codecs_whose_bits_can_be_chosen() -> None:
    for row in TABLE:
        made = row.make(Traits(Class.LINEAR, 4, "nearest", REAL))
        assert type(made) is row.codec
        assert {*made.distortion} == {8, 4, 3, 2}
        assert [*made.distortion.values()] == sorted(made.distortion.values())


def test_measuring_allows_no_more_bits_than_caution_asks_for() -> None:
    assert all(FEWEST[kind] <= LEAST_BITS[kind] for kind in CODED)


@pytest.mark.parametrize(
    ("codec", "offers", "lacks"),
    [(Threshold(4), REAL, Need.DECISION), (Zero(4), DECIDED, Need.RECTIFIER), (Standard(4), REAL, Need.STATISTICS),
     (Group(4), frozenset((Need.COMPLEX,)), Need.REAL), (Complex(4), REAL, Need.COMPLEX), (Exact(), frozenset(), None),
     (Identity(), frozenset(), None), (Group(4), REAL, None)],
)  # fmt: skip
def test_what_a_value_lacks(codec: Codec, offers: frozenset[Need], lacks: Need | None) -> None:
    assert Traits(Class.LINEAR, 8, "nearest", offers).lacks(codec) is lacks


def test_the_smallest_storage_without_loss() -> None:
    assert lossless(torch.bool, None, copied=False) == Mask()
    assert lossless(torch.int64, (0, 3), copied=False) == Integer(0, 3)
    assert lossless(torch.int8, (0, 127), copied=True) == Copy()
    assert lossless(torch.float32, None, copied=False) == lossless(None, (0, 1), copied=False) == Exact()
