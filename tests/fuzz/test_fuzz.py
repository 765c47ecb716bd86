"""Random programs under random options; ``python -m tools.fuzz`` runs as many as one likes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.choices import options, programs
from tests.fuzz.program import Input, Program, pruned
from tests.fuzz.search import search
from tests.fuzz.whole import check_compiled

ANY = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's, about the programs; ours are looked at in each example


@pytest.mark.parametrize("seed", range(3))
def test_random_programs(seed: int, one_thread: None) -> None:
    found = search(100, seed)
    assert not found.failures, "\n".join(f"# {what}\n{call}" for what, call in found.failures)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_programs(seed: int, one_thread: None) -> None:
    found = search(20_000, seed)
    assert not found.failures, "\n".join(f"# {what}\n{call}" for what, call in found.failures)


@settings(ANY, max_examples=10)
@given(program=programs(), chosen=options())
def test_compiled(program: Program, chosen: dict[str, Any]) -> None:
    check_compiled(program, **chosen)


@pytest.mark.slow
@settings(ANY, max_examples=300)
@given(program=programs(), chosen=options())
def test_many_compiled(program: Program, chosen: dict[str, Any]) -> None:
    check_compiled(program, **chosen)


def test_a_program_prints_as_the_python_that_makes_it() -> None:
    program = Program((Input("x0", ("n", 8), grad=True), Input("w1", (8,))), ("v2 = x0 + 1", "v3 = x0 * 2"), ("v3",))
    assert eval(repr(program)) == program
    assert eval(repr(pruned(program))) == Program((Input("x0", ("n", 8), grad=True),), ("v3 = x0 * 2",), ("v3",))
