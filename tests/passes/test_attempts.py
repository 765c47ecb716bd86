"""attempts: less is done of what was asked for where it cannot be, one value at a time if one can be named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxapprox import UnsupportedGraph
from fxapprox.passes import pipeline
from fxapprox.passes.encode import encode
from tests.passes.graphs import Traced, traced


@pytest.fixture
def joint() -> Traced:
    layers = [nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16)]
    return traced(nn.Sequential(*layers), torch.randn(32, 16))


def failing(*values: str, error: Exception | None = None) -> Any:
    """An encoder that cannot encode these values; or raises an error where anything is to be coded."""

    def run(forward: Any, backward: Any, plan: Any, **given: Any) -> Any:
        coded = [entry.name for entry in plan.stored if entry.codec.bits is not None]
        if error is not None and coded:
            raise error
        if found := tuple(name for name in coded if name in values):
            raise UnsupportedGraph("encode", "made up", values=found)
        return encode(forward, backward, plan, **given)

    return run


def test_one_value_is_exact(joint: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = joint.split(bits=8)
    first, *others = [entry.name for entry in plain.plan.stored if entry.codec.bits == 8]
    assert others
    monkeypatch.setattr(pipeline, "encode", failing(first))
    with pytest.warns(UserWarning, match=f"fxapprox keeps '{first}' exact: encode: made up"):
        found = joint.split(bits=8, strict=False)
    codecs = {entry.name: entry.codec.bits for entry in found.plan.stored}
    assert codecs.get(first) != 8
    assert all(codecs[name] == 8 for name in others)
    (reason,) = [a.reason for a in found.activations if a.name == first]
    assert reason.endswith("exact: encode: made up")
    with pytest.raises(UnsupportedGraph, match="made up"):
        joint.split(bits=8)


@pytest.mark.parametrize(
    ("error", "told"),
    [(UnsupportedGraph("encode", "made up"), "encode: made up"), (KeyError("made up"), "an error of fxapprox's own")],
)
def test_without_loss_instead(joint: Traced, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    expected = joint.step(joint.split(bits=None))
    monkeypatch.setattr(pipeline, "encode", failing(error=error))
    with pytest.warns(UserWarning, match=f"fxapprox stores this graph without loss: .*{told}"):
        found = joint.split(bits=8, strict=False)
    assert not found.fallback
    assert joint.step(found).same_as(expected)


def test_no_checkpoints_instead(joint: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnsupportedGraph("checkpoint", "made up")

    expected = joint.step(joint.split(bits=8))
    monkeypatch.setattr(pipeline, "checkpoint", refuse)
    with pytest.warns(UserWarning, match="fxapprox computes nothing of this graph again: checkpoint: made up"):
        found = joint.split(bits=8, checkpoint=2, strict=False)
    assert joint.step(found).same_as(expected)


def test_checkpoints_that_do_not_lower_the_peak_are_left_out(joint: Traced) -> None:
    assert joint.split(bits=8, checkpoint=2).segments, "asked for by number"
    few = traced(nn.Linear(16, 16), torch.randn(4, 16))
    assert not few.split(bits=8, checkpoint="sqrt").segments


def test_a_budget(joint: Traced) -> None:
    found = joint.split(memory_budget=0.9)
    tried = {point.setting: point.peak_bytes for point in found.pareto()}
    assert found.setting in tried
    assert all(point.peak_bytes > 0 for point in found.pareto())
