"""trace: the events are those of the format, and say what the timeline says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import fxapprox
from tools.zoo import models

# what the format asks of an event, by its phase
NEEDED = {
    "M": {"name", "pid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "C": {"name", "pid", "ts", "args"},
    "b": {"name", "cat", "id", "pid", "tid", "ts"},
    "e": {"name", "cat", "id", "pid", "tid", "ts"},
    "i": {"name", "cat", "pid", "tid", "ts", "s"},
}


@pytest.fixture(scope="module")
def report() -> fxapprox.Report:
    case = models.gpt(layers=4, batch=8)
    return fxapprox.explain(case.model, *case.args, bits=4, checkpoint=3)


@pytest.fixture(scope="module")
def events(report: fxapprox.Report) -> list[dict]:
    return json.loads(report.to_trace())["traceEvents"]


def test_events_are_of_the_format(events: list[dict]) -> None:
    assert {event["ph"] for event in events} == NEEDED.keys()
    for event in events:
        assert NEEDED[event["ph"]] <= event.keys()
        assert event.get("ts", 0) >= 0
        if event["ph"] == "C":
            assert all(isinstance(number, int) and number >= 0 for number in event["args"].values())


def test_async_events_come_in_pairs(events: list[dict]) -> None:
    begun = {event["id"]: event for event in events if event["ph"] == "b"}
    ended = {event["id"]: event for event in events if event["ph"] == "e"}
    assert begun.keys() == ended.keys()
    for key, event in begun.items():
        assert event["name"] == ended[key]["name"]
        assert event["ts"] < ended[key]["ts"]


def test_slices_do_not_overlap(events: list[dict]) -> None:
    for pid in (1, 2):
        starts = [event["ts"] for event in events if event["ph"] == "X" and event["pid"] == pid]
        assert starts == list(range(0, 1000 * len(starts), 1000))


def test_the_counter_is_the_timeline(report: fxapprox.Report, events: list[dict]) -> None:
    for pid, timeline in ((1, report.timeline), (2, report.baseline_timeline())):
        levels = [sum(e["args"].values()) for e in events if e["ph"] == "C" and e["pid"] == pid]
        assert levels[:-1] == [moment.live for moment in timeline.moments]
        assert levels[-1] == timeline.after_backward


def test_what_is_saved_and_boundaries_have_names(report: fxapprox.Report, events: list[dict]) -> None:
    names = Counter(event["name"] for event in events if event["ph"] == "b" and event["pid"] == 1)
    coded = [d for d in report.decisions if d.storage.endswith("group") and d.bytes_after]
    assert coded
    for decision in coded:
        assert any(name.startswith(f"{decision.value} as ") for name in names)
    boundaries = {event["name"] for event in events if event["ph"] == "i"}
    assert boundaries == {f"checkpoint boundary {n}" for s in report.segments for n in s.boundary}


def test_a_file(report: fxapprox.Report, tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    assert report.to_trace(path) == path.read_text()


def test_several_graphs_and_none(report: fxapprox.Report) -> None:
    from fxapprox.report.merge import merge

    both = json.loads(merge([report, report]).to_trace())["traceEvents"]
    count = sum(event["ph"] == "X" for event in json.loads(report.to_trace())["traceEvents"])
    assert sum(event["ph"] == "X" for event in both) == 2 * count
