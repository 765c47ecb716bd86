"""Documents and options with something changed are refused by us, or taken for what they say."""

from __future__ import annotations

from random import Random

import pytest

from tools.mutations.changes import mutated_document, mutated_text, mutated_value
from tools.mutations.search import KINDS, Misread, _command_line, _pairs, _says, search, seeds


def test_nothing_foreign_and_nothing_misread() -> None:
    for found in search(500, 5, seed=0):  # noqa: B007
        pass
    assert found.failures == []
    assert sum(found.counts.values()) == 505
    assert all(found.counts[kind, "refused"] and found.counts[kind, "accepted"] for kind in KINDS)


def test_the_same_seed_gives_the_same_examples() -> None:
    seed = seeds()["plan"][0]
    one, other = Random(3), Random(3)
    assert [mutated_document(one, seed) for _ in range(50)] == [mutated_document(other, seed) for _ in range(50)]
    assert mutated_value(one, seed) == mutated_value(other, seed)
    assert mutated_text(one, "conv=8,*=4") == mutated_text(other, "conv=8,*=4")


def test_seeds_are_left_alone() -> None:
    seed = seeds()["plan"][0]
    before = str(seed)
    for i in range(50):
        mutated_value(Random(i), seed)
    assert str(seed) == before


def test_what_would_be_misread_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _pairs(b'{"a": 1, "b": 2}') == _pairs(b'{"b": 2, "a": 1}')
    for other in (b'{"a": true}', b'{"a": "1"}', b'{"a": 1, "a": 1}', b'{"b": 1}', b'{"a": [1]}'):
        assert _pairs(b'{"a": 1}') != _pairs(other)
    assert _says("bits", "conv=8, *=exact", {"conv": 8, "*": None})
    assert not _says("bits", "conv=8,*=4", {"conv": 8, "*": None})
    assert not _says("memory_budget", "0.5", 0.25)
    monkeypatch.setattr("fxapprox.options.parse.parse_bits", lambda text: 8)
    with pytest.raises(Misread, match="--bits"):
        _command_line({"bits": "4"})
