"""Memory over a training step in the trace event format, which Perfetto and chrome://tracing open.

Two processes, this plan and plain torch.compile. Each has a counter of bytes alive (stacked by what they are for), a
slice for every kernel of forward and backward, an asynchronous slice for every saved value from the kernel that makes
it to the last that reads it, and an instant where a checkpoint boundary is made.

Time is order: every kernel takes ``KERNEL``. What is predicted is when memory is taken and given back; a kernel's flops
would say nothing of those many that are bound by memory.

The format: "Trace Event Format", Google, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fxapprox.ir.records import Segment
from fxapprox.memory.timeline import Kind, Timeline
from fxapprox.report.data import ReportData
from fxapprox.sizes import evaluate, hints_of

KERNEL = 1000  # microseconds that a kernel is drawn long: the axis counts kernels in milliseconds
THREADS = {"forward": 1, "backward": 2}
COUNTERS: dict[Kind, str] = {
    "saved": "saved for backward", "output": "outputs and gradients", "gradient": "outputs and gradients",
    "tangent": "outputs and gradients", "temporary": "temporaries", "scratch": "temporaries",
}  # fmt: skip

Event = dict[str, Any]


def trace_json(report: ReportData) -> str:
    """The predicted timeline of a report as a trace; of a model with several graphs, one after the other."""
    values = hints_of(report.sizes)
    events = [
        *_process(1, "this plan", report.timeline, report.segments, values),
        *_process(2, "plain torch.compile", report.baseline_timeline(), (), values),
    ]
    about = {"time": "the order of kernels, 1 ms each; not seconds", "memory": "predicted, in bytes"}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})


def _process(
    pid: int, name: str, timeline: Timeline, segments: tuple[Segment, ...], values: Mapping[str, int]
) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
    for half, tid in THREADS.items():
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": f"{half} kernels"}}
    yield from _kernels(pid, timeline, values)
    yield from _counter(pid, timeline, values)
    yield from _saved(pid, timeline, values)
    made = {life.name: life.start for life in reversed(timeline.lives) if life.kind == "saved"}
    for boundary in dict.fromkeys(value for segment in segments for value in segment.boundary if value in made):
        yield {
            "ph": "i", "s": "p", "cat": "checkpoint", "name": f"checkpoint boundary {boundary}", "pid": pid,
            "tid": THREADS["forward"], "ts": made[boundary] * KERNEL,
        }  # fmt: skip


def _kernels(pid: int, timeline: Timeline, values: Mapping[str, int]) -> Iterator[Event]:
    for at, moment in enumerate(timeline.moments):
        yield {
            "ph": "X", "cat": moment.role, "name": moment.op, "pid": pid, "tid": THREADS[moment.half],
            "ts": at * KERNEL, "dur": KERNEL,
            "args": {"value": moment.name, "module": moment.module, "bytes alive": evaluate(moment.live, values)},
        }  # fmt: skip


def _counter(pid: int, timeline: Timeline, values: Mapping[str, int]) -> Iterator[Event]:
    """The level by what memory is for; a counter keeps its value until the next event."""
    end = len(timeline.moments)
    changes = [dict.fromkeys(COUNTERS.values(), 0) for _ in range(end + 1)]
    for life in timeline.lives:
        size, until = evaluate(life.size, values), end if life.until is None else life.until
        changes[life.start][COUNTERS[life.kind]] += size
        changes[until][COUNTERS[life.kind]] -= size * (life.until is not None)
    level = dict.fromkeys(COUNTERS.values(), 0)
    for at, change in enumerate(changes):
        level = {name: level[name] + change[name] for name in level}
        yield {"ph": "C", "name": "bytes alive", "pid": pid, "ts": at * KERNEL, "args": level}


def _saved(pid: int, timeline: Timeline, values: Mapping[str, int]) -> Iterator[Event]:
    """A pair of events for each saved value: it begins and it ends."""
    saved = [life for life in timeline.lives if life.kind == "saved"]
    for serial, life in enumerate(saved):
        until = len(timeline.moments) if life.until is None else life.until
        about = {"cat": "saved", "name": life.text, "id": f"{pid}.{serial}", "pid": pid, "tid": THREADS["forward"]}
        yield {"ph": "b", **about, "ts": life.start * KERNEL, "args": {"bytes": evaluate(life.size, values)}}
        yield {"ph": "e", **about, "ts": until * KERNEL}
