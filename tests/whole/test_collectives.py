"""Collectives in a graph: each is run where the program runs it, once, whatever is stored and computed again.

One process is a group here: collectives are operators of the graph as always, and give back what they are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.nn import functional as F

from fxapprox.analysis.rerun import runs_once
from fxapprox.codecs import Identity
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import op_name
from fxapprox.passes.rewrite import Rewrite
from tests.passes.graphs import Traced, traced

WIDTH = 32
COLLECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "all_reduce": lambda x: collectives.all_reduce(x, "sum", dist.group.WORLD),
    "all_gather": lambda x: collectives.all_gather_tensor(x, 0, dist.group.WORLD),
    "reduce_scatter": lambda x: collectives.reduce_scatter_tensor(x, "sum", 0, dist.group.WORLD),
    "all_to_all": lambda x: collectives.all_to_all_single(x, None, None, dist.group.WORLD),
}
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "square": lambda x: x * x,
    "halves": lambda x: F.silu(x.roll(1, 0)) * x,
    "dropout": lambda x: F.dropout(x, 0.3),
    "norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "softmax": lambda x: torch.softmax(x, -1),
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"bits": None}, {"bits": 4}, {"bits": 4, "checkpoint": "sqrt"}, {"bits": None, "checkpoint": 2},
    {"bits": 8, "checkpoint": 3, "checkpoint_bits": 8},
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def program(steps: Sequence[str], weights: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """A network of these steps; "linear" takes the next weights, "add" the value before the last linear step."""

    def run(x: Tensor) -> Tensor:
        own, before = iter(weights), x
        for step in steps:
            if step == "linear":
                before, x = x, x @ next(own)
            else:
                x = x + before if step == "add" else (COLLECTIVES | POINTWISE)[step](x)
        return x

    return run


def trace(steps: Sequence[str]) -> Traced:
    torch._dynamo.reset()
    torch.manual_seed(0)
    weights = [torch.randn(WIDTH, WIDTH).div_(WIDTH**0.5).requires_grad_() for step in steps if step == "linear"]
    return traced(program(steps, weights), torch.randn(64, WIDTH))


def communication(nodes: Iterator[fx.Node]) -> Counter[str]:
    return Counter(op_name(node) for node in nodes if op_name(node).startswith("_c10d_functional."))


def communicates_once(halves: Rewrite, joint: Joint) -> None:
    """Fails unless each half communicates as its part of the joint graph does, and waits for what it has started."""
    forward = communication(joint.forward_values)
    assert communication(iter(halves.forward.graph.nodes)) == forward
    assert communication(iter(halves.backward.graph.nodes)) == communication(iter(joint.gm.graph.nodes)) - forward
    for half in (halves.forward, halves.backward):
        waits = [node for node in half.graph.nodes if op_name(node) == "_c10d_functional.wait_tensor"]
        assert all(op_name(wait.all_input_nodes[0]).startswith("_c10d_functional.") for wait in waits)


def check(steps: Sequence[str]) -> None:
    graph = trace(["linear", *steps, "linear"])
    exact = graph.step(graph.split(bits=None))
    for options in SETTINGS:
        halves = graph.split(**options)
        assert not halves.fallback
        communicates_once(halves, Joint(graph.gm, graph.outputs))
        if options["bits"] is None:
            assert graph.step(halves).same_as(exact)
    assert graph.step(graph.split(policy=lambda _: Identity())).same_as(exact)


STEPS = st.lists(st.sampled_from(["linear", "add", *COLLECTIVES, *POINTWISE]), min_size=2, max_size=10)
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink a program takes minutes
anyhow = settings(max_examples=6, deadline=None, phases=UNSHRUNK, suppress_health_check=list(HealthCheck))


@anyhow
@example(["linear", "all_reduce", "add"])  # all that the collective needs is saved as well, for the sum
@given(STEPS)
def test_each_collective_runs_once(steps: list[str]) -> None:
    check(steps)


@pytest.mark.slow
@settings(anyhow, max_examples=500)
@given(STEPS)
def test_each_collective_runs_once_in_many_programs(steps: list[str]) -> None:
    check(steps)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_what_a_collective_returns_is_stored_in_few_bits(name: str) -> None:
    """In backward its product with the next weights' gradient is linear in it."""
    graph = trace(["linear", "gelu", "linear", name, "linear"])
    halves = graph.split(bits=4)
    (result,) = (node.name for node in halves.joint.forward_values if op_name(node).endswith("wait_tensor"))
    assert result in {entry.name for entry in halves.plan.stored if entry.codec.bits == 4}


def test_collectives_and_waits_run_once() -> None:
    joint = Joint(trace(["linear", *COLLECTIVES, "linear"]).gm, 1)
    found = [node for node in joint.gm.graph.nodes if op_name(node).startswith("_c10d_functional.")]
    assert len(found) == 4 * len(COLLECTIVES)
    assert all(runs_once(node) for node in found)
