"""Items in processes of their own, and the files of results."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tools.harness import Failed, Process, ResultsError, outcome, outcomes, read_json

HERE = "tests.tools.test_harness:records"


def records(items: Iterable[str], *, greeting: str) -> Iterator[str]:
    """What the processes run: some items end them."""
    for item in items:
        print("what a compiler says is no record")
        if item == "stops":
            os.abort()
        if item == "sleeps":
            time.sleep(60)
        if item == "raises":
            raise ValueError("no such item")
        yield f"{greeting} {item}"


def test_a_crash_is_an_outcome_and_the_others_go_on() -> None:
    first, second, third, fourth = outcomes(HERE, ["a", "stops", "raises", "b"], greeting="hello")
    assert (first, fourth) == ("hello a", "hello b")
    assert second.why == "the process died of SIGABRT"
    assert third.why == "the process ended with 1: ValueError: no such item"
    assert "Traceback" in third.said


def test_time_is_for_all_of_them() -> None:
    late = Failed("time", "not done after 0 s")
    assert list(outcomes(HERE, ["sleeps", "a"], seconds=0.2, greeting="hello")) == [late, late]


def test_variables_are_the_processes_own() -> None:
    found = outcome("tests.tools.test_harness:variables", "FXAPPROX_TRIED", environment={"FXAPPROX_TRIED": "yes"})
    assert found == "yes"


def variables(items: Iterable[str]) -> Iterator[str | None]:
    yield from map(os.environ.get, items)


def test_items_may_come_one_by_one() -> None:
    with Process(HERE, greeting="hello") as process:
        found = process.records()
        for item in ("a", "b"):
            process.send(item)
            assert next(found) == f"hello {item}"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ResultsError, match=r"a\.json: damaged"):
        read_json(tmp_path / "a.json")
