"""rewrite: no more is stored than torch's own partition does, and a graph that cannot be handled keeps that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxapprox import Activation, UnsupportedGraph
from fxapprox.codecs import Exact
from fxapprox.ir.records import Plan, Stored
from fxapprox.passes import pipeline, rewrite
from tests.passes.graphs import Traced, traced


def mlp() -> Traced:
    return traced(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)), torch.randn(32, 16))


@pytest.mark.parametrize("bits", [None, 8, 4, "auto"])
def test_the_two_graphs_are_those_of_the_plan(bits: int | str | None) -> None:
    joint = mlp()
    found, exact = joint.split(bits=bits), joint.split(bits=None)
    assert not found.fallback
    assert found.traced.gm is found.joint.gm, "nothing is moved to forward here"
    assert {made.entry.name for made in found.parts} <= set(found.plan.saved_names)
    assert joint.step(found).stored <= joint.step(exact).stored
    assert torch.equal(joint.step(found).outputs[0], joint.step(exact).outputs[0])


def test_more_than_torchs_own_partition_is_never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that stores everything exactly is not taken, whatever wrote it."""

    def all_of_it(activations: Sequence[Activation], *_: object, **__: object) -> Plan:
        stored = [
            Stored(a.name, Exact(), a.kind, a.nbytes, "") for a in activations if a.demand is not None and not a.free
        ]
        return Plan(tuple(stored), ())

    monkeypatch.setattr(pipeline, "plan", all_of_it)
    found = mlp().split(bits=8)
    assert found.fallback == "torch's own partition stores less"
    assert not found.plan.stored


def test_a_revised_plan_is_taken_as_it_is() -> None:
    """Who revises may store more than plain torch.compile."""
    joint = mlp()

    def exactly(plan: Plan, activations: Sequence[Activation]) -> Plan:
        sizes = {a.name: a.nbytes for a in activations}
        return replace(plan, stored=tuple(replace(s, codec=Exact(), nbytes=sizes[s.name]) for s in plan.stored))

    options = rewrite.Options(bits=8, min_bytes=0, lowering="eager", strict=True)
    found = rewrite.rewrite(joint.gm, joint.inputs, num_fwd_outputs=1, options=options, revise=exactly)
    assert found.plan.stored
    assert all(type(stored.codec) is Exact for stored in found.plan.stored)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 2048)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(x), torch.zeros(len(x), dtype=torch.long))


def test_both_joint_graphs_are_kept() -> None:
    with pipeline.leaving_out("advance"):
        joint = traced(Wide(), torch.randn(512, 16))
    found = joint.split(bits=8)
    assert found.joint.gradients
    assert not found.traced.gradients


def test_unsupported() -> None:
    joint = mlp()

    def refuse(plan: Plan, activations: Sequence[Activation]) -> Plan:
        raise UnsupportedGraph("plan", "made up")

    options = rewrite.Options(bits=8, min_bytes=0, lowering="eager")
    with (
        pytest.warns(UserWarning, match="fxapprox stores this graph without loss: plan: made up"),
        pytest.warns(UserWarning, match="fxapprox stores this graph exactly: plan: made up"),
    ):
        found = rewrite.rewrite(joint.gm, joint.inputs, num_fwd_outputs=1, options=options, revise=refuse)
    assert found.fallback == "plan: made up"
    assert not found.plan.stored
