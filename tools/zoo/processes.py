"""The models measured, each in processes of its own; what these die of becomes a row, too."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple
from itertools import groupby
from typing import Any

from tools.harness import Failed, outcomes
from tools.zoo.measure import rows_of
from tools.zoo.names import builder
from tools.zoo.rows import Row, Setting, row_of

# Sums of scattered gradients come out in one order only on one thread.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


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
    """A row for each setting; a crash is a row, and the others go on in another process."""
    found = outcomes(
        "tools.zoo.processes:records", map(astuple, settings), seconds=seconds, environment=ENVIRONMENT, rounds=rounds
    )
    for setting, record in zip(settings, found, strict=True):
        yield Row(setting, record.why, record.blame) if isinstance(record, Failed) else row_of(record)


def records(items: Iterable[Sequence[str]], *, rounds: int) -> Iterator[dict[str, Any]]:
    """The rows of one model's settings, measured in this process."""
    wanted = [Setting(*fields) for fields in items]
    warnings.simplefilter("ignore")
    yield from map(asdict, rows_of(builder(wanted[0].model), wanted, rounds=rounds))
