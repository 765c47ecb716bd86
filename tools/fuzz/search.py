"""Runs many examples, and shrinks those that fail."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tools.fuzz.choices import options, programs
from tools.fuzz.program import NAME, Program, pruned
from tools.fuzz.properties import check, check_all

CHUNK = 100  # programs after which hypothesis starts anew
CHOICES = 3  # of options, for each program: tracing takes as long as two partitions


@dataclass
class Found:
    """What a search found.

    Attributes:
        examples: how many pairs of a program and options were run; those of shrinking are not counted.
        failures: (what went wrong, a call of ``check`` that shows it), shrunk.
        notes: how often something noteworthy happened: a graph left alone, a budget that nothing fits.
    """

    examples: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def search(
    examples: int, start: int, progress: Callable[[Found], object] = lambda found: None, *, done: int = 0
) -> Found:
    """Runs so many examples; a seed gives the same ones again.

    Args:
        progress: told what was found so far, before every example.
        done: how many of them an earlier run has done, a multiple of 300: they count, and are not run again.
    """
    found = Found(done)
    with suppress(KeyboardInterrupt):
        while found.examples < examples:
            _chunk(found, examples, start * 10**6 + found.examples, progress)
    return found


def _chunk(found: Found, examples: int, start: int, progress: Callable[[Found], object]) -> None:
    count = min(CHUNK, -(-(examples - found.examples) // CHOICES))

    @seed(start)
    @settings(max_examples=count, phases=[Phase.generate], database=None, deadline=None,
              suppress_health_check=[*HealthCheck.__members__.values()])  # fmt: skip
    @given(
        program=programs(), choices=st.lists(options(), min_size=CHOICES, max_size=CHOICES),
        lossless=st.sampled_from(("identity", "exact")), fourth=st.integers(0, 3),
    )  # fmt: skip
    def run(program: Program, choices: list[dict[str, Any]], lossless: str, fourth: int) -> None:
        found.examples += CHOICES
        progress(found)
        report = fourth == 3
        try:
            found.notes.update(check_all(program, choices, lossless=lossless, report=report))
        except Exception:
            alone = [{"lossless": lossless, "report": report, **options} for options in choices]
            found.failures.append(shrunk(program, next((a for a in alone if _failure(program, a)), alone[0])))

    run()


def shrunk(program: Program, arguments: dict[str, Any]) -> tuple[str, str]:
    """What goes wrong, and the smallest call that we find to show it; hypothesis would take minutes."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(program, arguments):
            if _size(*candidate) < _size(program, arguments) and _failure(*candidate):
                (program, arguments), smaller = candidate, True
                break
    rest = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return _failure(program, arguments), f"check({program!r}{rest})"


def _smaller(program: Program, arguments: dict[str, Any]) -> Iterator[tuple[Program, dict[str, Any]]]:
    """The call with less: another output alone, a line less, an option less."""
    for name in dict.fromkeys((*program.outputs, *(line.partition(" = ")[0] for line in program.lines))):
        if (less := pruned(replace(program, outputs=(name,)))) != program and less.lines:
            yield less, arguments
    for line in program.lines:
        name, _, text = line.partition(" = ")
        for operand in NAME.findall(text):
            rest = [re.sub(rf"\b{name}\b", operand, other) for other in program.lines if other != line]
            outputs = tuple(operand if output == name else output for output in program.outputs)
            yield pruned(replace(program, lines=tuple(rest), outputs=outputs)), arguments
    for name in arguments:
        yield program, {key: value for key, value in arguments.items() if key != name}


def _size(program: Program, arguments: dict[str, Any]) -> tuple[int, int, int]:
    """What shrinking makes less of: lines, outputs, options."""
    return len(program.lines), len(program.outputs), len(arguments)


def _failure(program: Program, arguments: dict[str, Any]) -> str:
    """What goes wrong; "" if nothing does."""
    try:
        check(program, **arguments)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:500]}"
    return ""
