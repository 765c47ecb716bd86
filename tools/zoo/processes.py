"""Processes that measure, each one model; what they die of becomes a row, too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from itertools import groupby
from typing import IO

from tools.zoo.rows import Row, Setting, parse

COMMAND = (sys.executable, "-m", "tools.zoo.worker")


def measure(wanted: Sequence[Setting], done: Callable[[Row], None], *, jobs: int, seconds: float, rounds: int) -> None:
    """Measures all settings, each model in processes of its own.

    Args:
        wanted: settings of one model stand together.
        done: is called with each row, by one thread at a time.
        jobs: how many processes run at once.
        seconds: for all settings of one model.
        rounds: steps that are timed.
    """
    lock = threading.Lock()

    def one(settings: Sequence[Setting]) -> None:
        for row in rows_of_model(settings, seconds, rounds):
            with lock:
                done(row)

    models = [list(group) for _, group in groupby(wanted, key=lambda setting: setting.model)]
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(one, models):
            pass


def rows_of_model(settings: Sequence[Setting], seconds: float, rounds: int) -> Iterator[Row]:
    """A row for each setting; after a crash, which is a row, the others go on in another process."""
    left, deadline = list(settings), time.monotonic() + seconds
    while left:
        with running(left, rounds, deadline) as (process, errors):
            for row in rows_in(process.stdout):
                left.remove(row.setting)
                yield row
            code = process.wait()
            errors.seek(0)
            said = errors.read()
        if time.monotonic() >= deadline:
            yield from (Row(setting, f"not done after {seconds:.0f} s", "time") for setting in left)
            return
        if left:
            yield Row(left.pop(0), death(code, said), "process")


@contextmanager
def running(
    settings: Sequence[Setting], rounds: int, deadline: float
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A worker for these settings, and what it writes to standard error; it is killed at the deadline."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [*COMMAND, str(rounds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        timer.start()
        try:
            with process:
                send(process.stdin, json.dumps([astuple(setting) for setting in settings]))
                yield process, errors
        finally:
            timer.cancel()
            process.kill()


def send(pipe: IO[str] | None, text: str) -> None:
    """Writes to a process that may have died already."""
    assert pipe is not None
    try:
        pipe.write(text)
        pipe.close()
    except BrokenPipeError:
        pass


def rows_in(lines: IO[str] | None) -> Iterator[Row]:
    """The rows among the lines that a worker writes; a compiler that it runs may write others."""
    for line in lines or ():
        try:
            yield parse(line)
        except ValueError:
            continue


def death(code: int, errors: str) -> str:
    """What a process died of, in one line."""
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "no message")
    return f"the process ended with {code}: {last}"
