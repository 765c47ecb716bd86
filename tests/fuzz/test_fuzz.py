"""Random programs under random options; ``python -m tools.fuzz`` runs as many as one likes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tools.fuzz.choices import options, programs
from tools.fuzz.program import Input, Program, pruned
from tools.fuzz.properties import OTHER_SIZES, check
from tools.fuzz.running import _graph_of, serves, split
from tools.fuzz.search import search
from tools.fuzz.whole import check_compiled

ANY = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's, about the programs; ours are looked at in each example


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
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


REGION = Program(
    inputs=(Input("x0", ("n", 8), grad=True), Input("w1", (8, 8), grad=True)),
    lines=("v2 = F.linear(x0, w1)", "v3 = F.dropout(v2, 0.3)", "v4 = torch.tanh(v3) @ w1"),
    outputs=("v4",),
    regions=(("v2", "v3"),),
)  # fmt: skip


def test_a_region_is_the_users_checkpoint_in_the_source_and_a_mark_in_the_graph() -> None:
    assert "(v3,) = checkpoint(region_v2, use_reentrant=False)" in REGION.source
    assert eval(repr(REGION)) == REGION
    marked = [node.name for node in _graph_of(REGION).graph.nodes if "recompute" in node.meta]
    assert marked == ["linear", "dropout"]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_region_with_dropout_trains(compiled: bool, one_thread: None) -> None:
    assert (check_compiled(REGION, bits=4) if compiled else check(REGION, bits=4)) is not None


def test_height_and_width_are_symbolic_in_a_dynamic_program(one_thread: None) -> None:
    program = Program(
        inputs=(Input("x0", ("n", 4, "h", "w"), grad=True), Input("w1", (8, 4, 3, 3), grad=True)),
        lines=("v2 = F.conv2d(x0, w1)", "v3 = torch.tanh(v2)"),
        outputs=("v3",),
        dynamic=True,
    )  # fmt: skip
    traced = split(program, {})
    assert traced.joint is not None
    assert serves(traced.joint, OTHER_SIZES)
    check(program, bits=4)
    check_compiled(program, bits=4)
