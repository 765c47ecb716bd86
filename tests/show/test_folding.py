"""Folding: identical layers become one row, and no byte is lost."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from fxapprox.codecs import Group
from fxapprox.ir.records import Class, Decision, Reach
from fxapprox.ir.storage import Fate, Storage
from fxapprox.show.folding import fold, unfolded


def decision(module: str, value: str = "mm", *, before: int = 64, after: int = 8, **other: object) -> Decision:
    about: dict[str, object] = {
        "shape": (16,), "dtype": "float32", "kind": Class.LINEAR, "reach": Reach.CHAIN, "how": Storage.stored(Group(4)),
        "bits": 4, "predicates": (), "source": "net.py:3 in forward: x", "reason": "linear in aten.mm", "sizes": (16,),
        "expr_before": sympy.Integer(before), "expr_after": sympy.Integer(after), **other,
    }  # fmt: skip
    return Decision(value=value, module=module, bytes_before=before, bytes_after=after, **about)  # type: ignore[arg-type]


def folded(*decisions: Decision) -> list[tuple[str, int]]:
    return [(row.module, row.count) for row in fold(decisions)]


def test_layers_are_one_row() -> None:
    layers = [decision(f"layers.{i}.mlp", f"mm_{4 * i}" if i else "mm") for i in range(12)]
    (row,) = fold(layers)
    assert (row.module, row.count) == ("layers.0-11.mlp", 12)
    assert (row.bytes_before, row.bytes_after) == (12 * 64, 12 * 8)
    assert row.decisions == tuple(layers)


def test_gaps_are_shown() -> None:
    assert folded(*(decision(f"layers.{i}") for i in (0, 3, 4, 5, 9))) == [("layers.0,3-5,9", 5)]


@pytest.mark.parametrize(
    "other",
    [{"before": 128}, {"after": 16}, {"shape": (4, 4)}, {"dtype": "int32"}, {"how": Storage.stored(Group(8))},
     {"kind": Class.SMOOTH}, {"reach": Reach.TERMINAL}, {"reason": "smooth in aten.exp"}, {"value": "addmm"},
     {"source": "net.py:4 in forward: y"}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_whatever_differs_stands_alone(other: dict) -> None:
    assert sorted(folded(decision("layers.0"), decision("layers.1", **other))) == [("layers.0", 1), ("layers.1", 1)]


def test_names_that_torch_made_up_do_not_count() -> None:
    pair = [
        decision(f"layers.{i}", f"le_{i}", how=Storage(Fate.CARRIED, carrier=f"mm_{i}", segment=i), reason=f"as mm_{i}")
        for i in (1, 2)
    ]
    assert folded(*pair) == [("layers.1-2", 2)]


def test_blocks_of_a_stage_are_folded_where_stages_differ() -> None:
    stages = [decision(f"stages.{s}.{b}.conv", before=64 << s) for s in (0, 1) for b in range(3)]
    assert folded(*stages) == [("stages.1.0-2.conv", 3), ("stages.0.0-2.conv", 3)]


def test_the_leftmost_index_tells_layers_apart() -> None:
    both = [decision(f"blocks.{b}.mlp.{m}") for b in range(4) for m in (0, 2)]
    assert folded(*both) == [("blocks.0-3.mlp.0", 4), ("blocks.0-3.mlp.2", 4)]


def test_several_values_of_a_layer_are_one_row() -> None:
    heads = [decision(f"blocks.{i}", f"getitem_{3 * i + j}") for i in range(2) for j in range(3)]
    assert folded(*heads) == [("blocks.0-1", 6)]
    assert folded(*heads[:3]) == [("blocks.0", 3)]


def test_paths_without_an_index() -> None:
    assert folded(decision("head"), decision(""), decision("head")) == [("head", 2), ("", 1)]


PATHS = st.lists(st.sampled_from(["a", "b", "0", "1", "2", "10"]), max_size=4).map(".".join)


@given(st.lists(st.builds(decision, PATHS, before=st.sampled_from([0, 4, 8]), after=st.sampled_from([0, 4]))))
def test_no_byte_is_lost(decisions: list[Decision]) -> None:
    rows = fold(decisions)
    assert sorted(map(id, decisions)) == sorted(id(d) for row in rows for d in row.decisions)
    assert sum(row.bytes_before for row in rows) == sum(d.bytes_before for d in decisions)
    assert sum(row.bytes_after for row in rows) == sum(d.bytes_after for d in decisions)
    for row in rows:
        assert len({(d.bytes_before, d.bytes_after, len(d.module.split("."))) for d in row.decisions}) == 1
    sizes = [max(row.bytes_before, row.bytes_after) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert [row.count for row in unfolded(decisions)] == [1] * len(decisions)
