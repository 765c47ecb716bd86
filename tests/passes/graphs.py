"""Joint graphs of small models, as the passes get them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fxapprox
from fxapprox.activation import Activation
from fxapprox.graph import Joint
from fxapprox.passes.classify import classify


def joint_of(model: Callable[..., Any], *args: Any) -> Joint:
    """The prepared joint graph of a model that returns one tensor."""
    report = fxapprox.explain(model, *args, min_bytes=0)
    assert report.joint is not None
    outputs = len(report.joint.graph.find_nodes(op="output")[0].args[0])  # type: ignore[arg-type]
    assert outputs
    return Joint(report.joint, 1)


def classified(model: Callable[..., Any], *args: Any) -> dict[str, Activation]:
    """Every forward value by its name."""
    return {a.name: a for a in classify(joint_of(model, *args), min_bytes=0)}


def of_op(values: dict[str, Activation], op: str) -> list[Activation]:
    """The values that an operator made."""
    return [a for a in values.values() if a.op == op]
