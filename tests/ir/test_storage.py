"""Storage: the record says how a value is kept, and its text is made from it."""

from __future__ import annotations

import pytest

from fxapprox.codecs import Cast, Codec, Copy, Exact, Group, Identity, Integer, Mask, Standard, Threshold, Zero
from fxapprox.ir.storage import Fate, Storage
from tests.show.test_view import reported


@pytest.mark.parametrize(
    ("how", "text"),
    [(Storage.stored(Threshold(4)), "4-bit threshold"), (Storage.stored(Exact()), "exact"),
     (Storage.stored(Copy()), "exact copy"), (Storage.stored(Mask()), "1-bit mask"),
     (Storage.stored(Group(4), segment=2), "4-bit group, recomputed in segment 2"),
     (Storage.carried("relu"), "in the code of relu"), (Storage.recomputed(), "recomputed"),
     (Storage.recomputed(3), "recomputed in segment 3"), (Storage(Fate.UNNEEDED), "not needed"),
     (Storage(Fate.STORED, Group(8), role="boundary"), "boundary, 8-bit group"),
     (Storage(Fate.CARRIED, role="for recomputation"), "for recomputation, inside its code"),
     (Storage(Fate.FREE), "free"), (Storage(Fate.COPIED), "copied (channels-last)")],
)  # fmt: skip
def test_the_text_is_made_from_the_record(how: Storage, text: str) -> None:
    assert how.text == text


@pytest.mark.parametrize(
    ("codec", "lossless"),
    [(Exact(), True), (Copy(), True), (Identity(), True), (Mask(), True), (Integer(-1, 1), True), (Cast(), False),
     (Group(8), False), (Threshold(8), False), (Zero(8), False), (Standard(8), False)],
)  # fmt: skip
def test_a_codec_says_whether_it_loses_something(codec: Codec, lossless: bool) -> None:
    assert Storage.stored(codec).lossless is lossless


@pytest.mark.parametrize("options", ["codes", "coded segments"])
def test_records_agree_with_what_a_report_counts(options: str) -> None:
    for decision in reported("clamped", options).decisions:
        how = decision.how
        assert (how.codec is not None) == (how.fate is Fate.STORED)
        assert (decision.bits is not None) <= (how.lossless is False)
        assert decision.bytes_after == 0 or how.fate in (Fate.STORED, Fate.CARRIED)
