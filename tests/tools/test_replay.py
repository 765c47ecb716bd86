"""Process replay: the same models and settings give the same text, whatever else the process has traced before."""

from __future__ import annotations

from pathlib import Path

from tools.replay import main


def test_two_runs_write_the_same_files(tmp_path: Path) -> None:
    for name in ("before", "after"):
        main(tmp_path / name, models="mlp_dropout", bits="exact,4")
    before, after = ({p.name: p.read_text() for p in (tmp_path / name).rglob("*.txt")} for name in ("before", "after"))
    assert before == after
    assert before.keys() == {
        "hashes.txt",
        *(f"{way}-{bits}.txt" for way in ("eager", "inductor") for bits in ("exact", "4")),
    }
    assert "aten.mm.default(%" in before["eager-exact.txt"]
    assert "encode_0:" in before["inductor-4.txt"] or "encoded_0:" in before["inductor-4.txt"]
