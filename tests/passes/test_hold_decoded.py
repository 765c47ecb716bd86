"""hold_decoded: decoded images are in memory where less is alive for it, and gradients keep their bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fxapprox import torch_adapter as adapter
from fxapprox.memory.timeline import timeline
from fxapprox.passes.pipeline import leaving_out
from fxapprox.passes.rewrite import Rewrite
from tests.passes.graphs import traced
from tools.zoo.models import Case, benchmarks, generative


def held(halves: Rewrite) -> int:
    """How many values of backward are told to be in memory."""
    return len(halves.backward.graph.find_nodes(op="call_function", target=adapter.IN_MEMORY))


def backward_peak(halves: Rewrite) -> int:
    """The predicted peak of backward, in bytes."""
    line = timeline(halves.forward, halves.backward, num_fwd_outputs=halves.joint.num_fwd_outputs)
    return max(moment.live for moment in line.moments if moment.half == "backward")  # type: ignore[type-var, return-value]


@pytest.mark.parametrize(
    ("build", "holds"),
    [
        (lambda: generative.diffusion_unet(batch=8, width=32, size=64), True),  # gates, groups, a step added
        (lambda: benchmarks.preact(11, 16, bottleneck=True), False),  # the value would be there beside its rectifier's
    ],
)
def test_where_less_is_alive(build: Callable[[], Case], holds: bool) -> None:
    case = build()
    joint = traced(lambda *args: case.loss(case.model(*args)), *case.args)
    options = {"bits": 4, "lowering": "inductor", "slices": None, "min_bytes": 4096}
    with leaving_out("hold decoded"):
        without = joint.split(**options)
    halves = joint.split(**options)
    assert (held(halves) > held(without)) == holds
    assert backward_peak(halves) <= backward_peak(without)
    assert joint.step(halves).same_as(joint.step(without))
