"""The pipeline: the steps from a joint graph to its two rewritten halves, by name and in order."""

from __future__ import annotations

import gc
import hashlib
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.activation import Activation, Plan, Segment
from fxapprox.codecs import Group
from fxapprox.errors import UnsupportedGraph
from fxapprox.graph import Joint
from fxapprox.options import Options
from fxapprox.passes.allocate import allocate
from fxapprox.passes.checkpoint import checkpoint
from fxapprox.passes.classify import classify
from fxapprox.passes.encode import Parts, encode
from fxapprox.passes.materialize import materialize
from fxapprox.passes.partition import partition
from fxapprox.passes.pin_inputs import copied_inputs, pin_inputs
from fxapprox.passes.plan import plan
from fxapprox.passes.restore import restore
from fxapprox.plan_file import SavedPlan
from fxapprox.sizes import hints_of
from fxapprox.torch_adapter import Partition

ROOT = pathlib.Path(__file__).resolve().parent


@dataclass(frozen=True)
class Rewrite:
    """A joint graph and what became of it.

    Attributes:
        joint: the prepared joint graph, as it was.
        forward, backward: the rewritten graphs, as they go to Inductor.
        activations: every forward value, classified; empty if the graph was left alone.
        plan: what is stored; empty if the graph was left alone.
        parts: what forward really returns for each entry of the plan; of those in a segment, what it would return.
        segments: what backward computes again from checkpoints.
        baseline: names of the values that plain torch.compile would save.
        copied: names of the inputs of which plain torch.compile would store a channels-last copy.
        recopied: those of them of which this plan has to store it as well.
        fallback: why the graph was left alone, or "".
        seconds: time spent in each step.
    """

    joint: Joint
    forward: fx.GraphModule
    backward: fx.GraphModule
    activations: tuple[Activation, ...] = ()
    plan: Plan = field(default_factory=lambda: Plan((), ()))
    parts: tuple[Parts, ...] = ()
    segments: tuple[Segment, ...] = ()
    baseline: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    recopied: tuple[str, ...] = ()
    fallback: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


def rewrite(
    gm: fx.GraphModule,
    joint_inputs: Sequence[Any],
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None = None,
    options: Options,
    revise: Callable[[Plan, Sequence[Activation]], Plan] = lambda plan, _: plan,
) -> Rewrite:
    """Splits a joint graph along our plan; a graph that cannot be handled is split exactly, with a warning.

    Requires: a joint graph as AOTAutograd hands it to a partition function.
    Ensures: forward computes what it did; the two graphs follow AOTAutograd's calling convention.
    Changes numerics: of backward, within what the plan's codecs lose.

    Raises:
        UnsupportedGraph: the graph cannot be handled, and ``options.strict`` is set.
    """
    with _collector_paused():
        return _rewrite(gm, joint_inputs, num_fwd_outputs, tuple(static_lifetime_input_indices or ()), options, revise)


def _rewrite(
    gm: fx.GraphModule,
    joint_inputs: Sequence[Any],
    num_fwd_outputs: int,
    static: tuple[int, ...],
    options: Options,
    revise: Callable[[Plan, Sequence[Activation]], Plan],
) -> Rewrite:
    clock = _Clock()
    adapter.prepare_joint(gm)
    joint = Joint(gm, num_fwd_outputs, static)
    clock.lap("prepare")
    saved = adapter.default_saved(gm, num_fwd_outputs=num_fwd_outputs, static_inputs=static)
    baseline = tuple(n.name for n in saved)
    copied = copied_inputs(gm, saved)
    clock.lap("baseline")
    why = ""
    try:
        activations = classify(joint, min_bytes=options.min_bytes)
        clock.lap("classify")
        chosen = revise(_chosen(activations, options, hints_of(adapter.dynamic_sizes(gm))), activations)
        clock.lap("plan")
        if any(a.demand is not None for a in activations):
            forward, backward = partition(joint, chosen)
            clock.lap("partition")
            parts = encode(forward, backward, chosen, num_fwd_outputs=num_fwd_outputs)
            clock.lap("encode")
            pin_inputs(forward, num_fwd_outputs=num_fwd_outputs)
            materialize(forward)
            recopied = copied_inputs(forward, forward.graph.find_nodes(op="output")[0].args[0][num_fwd_outputs:])
            forward, backward = adapter.finish_split(forward, backward)
            clock.lap("finish")
            segments: tuple[Segment, ...] = ()
            if options.checkpoint is not None:
                segments = checkpoint(
                    forward, backward, parts, options.checkpoint, num_fwd_outputs=num_fwd_outputs,
                    codec=Group(options.checkpoint_bits) if options.checkpoint_bits else None, activations=activations,
                )  # fmt: skip
                clock.lap("checkpoint")
            return Rewrite(
                joint, forward, backward, activations, chosen, parts, segments, baseline, copied, recopied, "",
                clock.laps,
            )  # fmt: skip
    except UnsupportedGraph as error:
        if options.strict:
            raise
        why = str(error)
        warnings.warn(f"fxapprox stores this graph exactly: {why}", stacklevel=2)
    forward, backward = _exact(gm, joint_inputs, num_fwd_outputs, static)
    return Rewrite(
        joint, forward, backward, baseline=baseline, copied=copied, recopied=copied, fallback=why, seconds=clock.laps
    )


def _chosen(activations: tuple[Activation, ...], options: Options, hints: Mapping[str, int]) -> Plan:
    """The plan that the options ask for."""
    if isinstance(options.plan, SavedPlan) and any(a.demand is not None for a in activations):
        return restore(options.plan, activations, options, hints)
    chosen = plan(activations, options, hints=hints)
    return allocate(chosen, activations, options, hints) if options.bits == "auto" else chosen


def _exact(gm: fx.GraphModule, joint_inputs: Sequence[Any], num_fwd_outputs: int, static: tuple[int, ...]) -> Partition:
    return adapter.exact_partition(
        gm, joint_inputs, num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=list(static)
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Passes make many objects that live on: collections would walk all that tracing has made, and free nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Clock:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


@cache
def source_hash() -> str:
    """Identifies our source: a compiled graph in a cache is stale once any file of ours changes."""
    package = pathlib.Path(adapter.__file__).resolve().parent
    digest = hashlib.sha256()
    for folder in (package, package / "codecs", ROOT):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def cache_key(options: Options) -> str | None:
    """What steers the rewrite, for Inductor's caches; None (no caching) if a policy function has no ``uuid``."""
    policy = "" if options.policy is None else getattr(options.policy, "uuid", None)
    if policy is None:
        return None
    bits = sorted(options.bits.items()) if isinstance(options.bits, Mapping) else options.bits
    chosen = (options.average_bits, options.sensitivities) if options.bits == "auto" else ()
    checkpoints = options.checkpoint, options.checkpoint_bits
    rest = *checkpoints, options.rounding, options.min_bytes, options.lowering, options.strict
    parts = (bits, chosen, options.plan, *rest, policy)
    return f"fxapprox-{source_hash()}-{parts!r}"
