"""Runs many examples, and shrinks those that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.choices import options, programs
from tests.fuzz.program import Program
from tests.fuzz.properties import check

CHUNK = 250  # examples after which hypothesis starts anew; a failure ends a chunk


@dataclass
class Found:
    """What a search found.

    Attributes:
        examples: how many were run; those of shrinking are not counted.
        failures: (what went wrong, a call of ``check`` that shows it), shrunk.
        notes: how often something noteworthy happened: a graph left alone, a budget that nothing fits.
    """

    examples: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def search(examples: int, start: int, progress: Callable[[Found], object] = lambda found: None) -> Found:
    """Runs so many examples; a seed gives the same ones again.

    Args:
        progress: told what was found so far, before every example.
    """
    found = Found()
    with suppress(KeyboardInterrupt):
        while found.examples < examples:
            _chunk(found, examples, start * 10**6 + found.examples, progress)
    return found


def _chunk(found: Found, examples: int, start: int, progress: Callable[[Found], object]) -> None:
    failing: list[tuple[str, str]] = []  # the last is the smallest: hypothesis shrinks, and runs it once more

    @seed(start)
    @settings(max_examples=min(CHUNK, examples - found.examples), database=None, deadline=None,
              report_multiple_bugs=False, suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        program=programs(), lossy=options(), lossless=st.sampled_from(("identity", "exact")), tenth=st.integers(0, 9)
    )
    def run(program: Program, lossy: dict[str, Any], lossless: str, tenth: int) -> None:
        if not failing:
            found.examples += 1
            progress(found)
        arguments = {"lossless": lossless, "report": tenth == 9, **lossy}
        try:
            notes = check(program, **arguments)
        except Exception as error:
            failing.append((f"{type(error).__name__}: {error}", call_of(program, arguments)))
            raise
        if not failing:
            found.notes.update(notes)

    try:
        run()
    except Exception:
        if not failing:
            raise
        found.failures.append(failing[-1])


def call_of(program: Program, arguments: dict[str, Any]) -> str:
    """A call of ``check``, as Python."""
    rest = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return f"check({program!r}{rest})"
