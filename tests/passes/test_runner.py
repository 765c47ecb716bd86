"""runner: passes run in order, can be left out by name, and what they leave is checked after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from fxapprox import OptionError, Options, UnsupportedGraph
from fxapprox.ir.joint import Joint
from fxapprox.passes import pipeline
from fxapprox.passes.pipeline import PREPARE, SPLIT, keeping, leaving_out
from fxapprox.passes.runner import Clock, Pass, State, left_out, run
from tests.passes.graphs import Traced, traced


@pytest.fixture
def joint() -> Traced:
    return traced(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)), torch.randn(32, 16))


def start(joint: Traced, bits: int = 8) -> State:
    return State(Joint(joint.gm, joint.outputs), Options(bits=bits, min_bytes=0, lowering="eager"))


def test_each_pass_runs_once_and_is_timed(joint: Traced) -> None:
    ran: list[str] = []

    def noting(each: Pass) -> Pass:
        return replace(each, run=lambda state: ran.append(each.name) or each.run(state))  # type: ignore[func-returns-value]

    clock = Clock()
    run(start(joint), [noting(each) for each in (*PREPARE, *SPLIT)], clock)
    assert len(set(ran)) == len(ran)
    assert list(clock.laps) == ran == [each.name for each in (*PREPARE, *SPLIT) if each.name in ran]
    assert {"find images", "checkpoint", "restore", "allocate"}.isdisjoint(ran), "there is nothing for them to do"


def test_a_pass_is_left_out() -> None:
    assert not left_out()
    with leaving_out("advance"), leaving_out("materialize"):
        assert left_out() == {"advance", "materialize"}
    assert not left_out()


@pytest.mark.parametrize(("name", "told"), [("encode", "encode"), ("inline", "inline")])
def test_what_cannot_be_left_out(name: str, told: str) -> None:
    with pytest.raises(OptionError, match=f"no pass '{told}' can be left out; expected one of stand in, advance"):
        leaving_out(name).__enter__()


def test_graphs_are_kept(joint: Traced) -> None:
    with keeping("partition", "encode"):
        halves = joint.split(bits=8)
    assert set(halves.kept) == {"partition", "encode"}
    sizes = {name: len(backward.graph.nodes) for name, (_, backward) in halves.kept.items()}
    assert sizes["partition"] < sizes["encode"]
    assert halves.kept["encode"][0] is not halves.forward
    assert not joint.split(bits=8).kept
    with pytest.raises(OptionError, match="no pass 'classify' has two graphs to show"):
        keeping("classify").__enter__()


def _forget(state: State) -> State:
    """Backward takes one value less."""
    backward = state.halves[1].graph
    given = backward.find_nodes(op="placeholder")[0]
    for user in list(given.users):
        user.replace_input_with(given, backward.find_nodes(op="placeholder")[1])
    backward.erase_node(given)
    return state


def _disorder(state: State) -> State:
    """An operator stands behind its reader."""
    *_, last, _ = state.halves[0].graph.nodes
    last.append(last.all_input_nodes[0])
    return state


def _decide(state: State) -> State:
    """A comparison reads a decoded value."""
    graph = state.halves[1].graph
    names = {name for made in state.parts for name in made.decoded}
    decoded = next(node for node in graph.nodes if node.name in names)
    with graph.inserting_after(decoded):
        compared = graph.call_function(torch.ops.aten.gt.Scalar, (decoded, 0))
    compared.meta["val"] = decoded.meta["val"] > 0
    return state


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (_forget, "after wrong, backward does not take what forward saves"),
        (_disorder, "wrong left a graph that is not well formed"),
        (_decide, "would take a decision from an approximate value"),
    ],
)
def test_a_wrong_pass_is_found(joint: Traced, wrong: Callable[[State], State], told: str) -> None:
    at = [each.name for each in SPLIT].index("finish")
    passes = (*PREPARE, *SPLIT[:at], Pass("wrong", wrong), *SPLIT[at:])
    with pytest.raises(UnsupportedGraph, match=told):
        run(start(joint), passes, Clock())


def test_a_wrong_pass_costs_memory_alone(monkeypatch: pytest.MonkeyPatch, joint: Traced) -> None:
    """What the runner finds sends the graph to exact storage, with a warning; the gradients are plain's."""
    expected = joint.step(joint.split(bits=None))
    monkeypatch.setattr(pipeline, "pin_inputs", lambda forward, **_: _break(forward))
    with (
        pytest.warns(UserWarning, match="stores this graph without loss: verify: pin inputs left a graph"),
        pytest.warns(UserWarning, match="stores this graph exactly: verify: pin inputs left a graph"),
    ):
        halves = joint.split(bits=8, strict=False)
    assert joint.step(halves).same_as(expected)


def _break(forward: torch.fx.GraphModule) -> None:
    *_, last, _ = forward.graph.nodes
    last.append(last.all_input_nodes[0])
