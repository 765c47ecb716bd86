"""The partition function: from a joint graph to the two graphs that are compiled, and the record of how."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.rerun import runs_once
from fxapprox.collector import collector_paused
from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.joint import Joint
from fxapprox.ir.records import Activation, Plan, Segment, Slices, Spliced
from fxapprox.ir.tensors import flops
from fxapprox.memory.between import NOTHING, Handed
from fxapprox.memory.held import held_by, saved_by
from fxapprox.memory.settings import Point
from fxapprox.options import Options
from fxapprox.passes.attempts import Attempts, rerunnable
from fxapprox.passes.encode import Parts
from fxapprox.passes.pin_inputs import copied_inputs
from fxapprox.passes.pipeline import FOR_INDUCTOR, PREPARE, stored_bytes
from fxapprox.passes.runner import Clock, State, run
from fxapprox.sizes import evaluate, hints_of
from fxapprox.torch_adapter import Partition


@dataclass(frozen=True)
class Rewrite:
    """A joint graph and what became of it.

    Attributes:
        joint: the prepared joint graph that was split.
        traced: the prepared joint graph as torch traced it, before gradients were moved to forward.
        forward, backward: the rewritten graphs, as they go to the lowering.
        activations: every forward value, classified; empty if the graph was left alone.
        plan: what is stored; empty if the graph was left alone.
        parts: what forward really returns for each entry of the plan; of those in a segment, what it would return.
        segments: what backward computes again from checkpoints.
        baseline: names of the values that plain torch.compile would save.
        copied: names of the inputs of which plain torch.compile would store a channels-last copy.
        recopied: those of them of which this plan has to store it as well.
        counted, counted_for_plain: names of inputs whose memory counts where it is saved, by us or by torch.compile.
        fallback: why the graph was left alone, or "".
        seconds: time spent in each step.
        setting: what a memory budget chose, or "".
        pareto: tries all settings that a budget chooses from.
        kept: {pass: the two graphs as it left them}, where ``pipeline.keeping`` asked for them.
        spliced: where codecs stand in the two graphs.
        slices: the parts that run slice by slice.
    """

    joint: Joint
    traced: Joint
    forward: fx.GraphModule
    backward: fx.GraphModule
    activations: tuple[Activation, ...] = ()
    plan: Plan = field(default_factory=lambda: Plan((), ()))
    parts: tuple[Parts, ...] = ()
    segments: tuple[Segment, ...] = ()
    baseline: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    recopied: tuple[str, ...] = ()
    counted: frozenset[str] = frozenset()
    counted_for_plain: frozenset[str] = frozenset()
    fallback: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    setting: str = ""
    pareto: Callable[[], tuple[Point, ...]] = tuple
    kept: Mapping[str, Partition] = field(default_factory=dict)
    spliced: tuple[Spliced, ...] = ()
    slices: tuple[Slices, ...] = ()


def for_inductor(
    joint: Joint,
    halves: Partition,
    spliced: Sequence[Spliced],
    slices: Sequence[Slices] = (),
    clock: Clock | None = None,
) -> Partition:
    """The two halves of a joint graph with calls in place of what is alike; the graphs given are untouched.

    Args:
        spliced: where codecs stand in them.
        slices: the parts that run slice by slice.
        clock: gets the seconds of each pass.
    """
    state = State(joint, Options(), forward=halves[0], backward=halves[1], spliced=tuple(spliced), slices=tuple(slices))
    return run(state, FOR_INDUCTOR, clock or Clock()).halves


def rewrite(
    gm: fx.GraphModule,
    joint_inputs: Sequence[Any],
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None = None,
    options: Options,
    handed: Handed = NOTHING,
    revise: Callable[[Plan, Sequence[Activation]], Plan] | None = None,
) -> Rewrite:
    """Splits a joint graph along our plan; a graph that cannot be handled is split exactly, with a warning.

    Requires: a joint graph as AOTAutograd hands it to a partition function.
    Ensures: forward computes what it did; the two graphs follow AOTAutograd's calling convention.
    Changes numerics: of backward, within what the plan's codecs lose.

    Args:
        handed: what crosses from the graphs before it and behind it.
        revise: changes the plan before the graph is split along it.

    Raises:
        UnsupportedGraph: the graph cannot be handled, and ``options.strict`` is set.
        OptionError: no setting fits ``options.memory_budget``.
    """
    with (
        collector_paused(), adapter.lazy_modules(), adapter.sharing_traces(adapter.fake_mode_of(gm)),
        adapter.general_sizes(gm),
    ):  # fmt: skip
        clock = Clock()
        _warn_of_idle(gm, options)
        adapter.prepare_joint(gm)
        if options.lowering == "eager":
            adapter.seed_random_numbers(gm)
        static = tuple(static_lifetime_input_indices or ())
        traced = _traced(gm, num_fwd_outputs, static, options, handed)
        clock.lap("prepare")
        saved = adapter.default_saved(gm, num_fwd_outputs=num_fwd_outputs, static_inputs=static)
        counted, plains = (_inputs_at(gm, handed.counted - held) for held in (handed.held, handed.held_by_plain))
        untouched = Rewrite(
            traced, traced, gm, gm, baseline=tuple(n.name for n in saved), copied=copied_inputs(gm, saved),
            counted=counted, counted_for_plain=plains, seconds=clock.laps,
        )  # fmt: skip
        clock.lap("baseline")
        try:
            found = _least(untouched, saved, options, revise, clock, free=_inputs_at(gm, handed.held_by_eager))
        except UnsupportedGraph as error:
            if options.strict:
                raise
            found = str(error)
            warnings.warn(f"fxapprox stores this graph exactly: {found}", stacklevel=2)
        if not isinstance(found, str):
            return found
        forward, backward = adapter.exact_partition(
            gm, joint_inputs, num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=list(static)
        )
        return replace(untouched, forward=forward, backward=backward, recopied=untouched.copied, fallback=found)


def _least(
    untouched: Rewrite,
    saved: Sequence[fx.Node],
    options: Options,
    revise: Callable[[Plan, Sequence[Activation]], Plan] | None,
    clock: Clock,
    free: frozenset[str],
) -> Rewrite | str:
    """The graph, split so that no more is stored than by torch's own partition; or why it is left alone.

    Args:
        free: names of inputs that others save as well.
    """
    traced = untouched.traced
    hints = hints_of(adapter.dynamic_sizes(traced.gm))
    torchs = _recomputed(traced, saved)
    # what the user has said value by value, or by its peak, may store more than plain torch.compile
    prescribed = revise is not None or any((options.policy, options.plan, options.memory_budget))
    counted, exact, why = untouched.counted - free, dict[frozenset[str], int](), ""
    plain = evaluate(sum(held_by(saved, counted).values()), hints)  # of torch's own partition in our place
    for state in _ways(State(traced, options, revise), torchs, clock):
        if all(a.demand is None for a in state.activations):
            return why
        attempts = Attempts(state, traced, untouched.baseline, clock)
        if options.memory_budget is None:
            split, setting = attempts.as_asked(), ""
        elif (fitting := attempts.within_budget()) is not None:
            split, setting = fitting
        else:
            return "nothing has a lower peak"
        kept = state.joint.kept  # is in what is held, not in what a plan stores
        if not prescribed and kept not in exact:
            exact[kept] = attempts.exact_bytes(torchs)
        if prescribed or (
            _stores(split, counted, hints) <= plain and _stores(split, counted, hints, kept) <= exact[kept]
        ):
            forward, backward = split.halves
            return replace(
                untouched, joint=split.joint, forward=forward, backward=backward, activations=split.activations,
                plan=split.plan, parts=split.parts, segments=split.segments, recopied=split.recopied,
                setting=setting, pareto=attempts.pareto, kept=split.kept, spliced=split.spliced, slices=split.slices,
            )  # fmt: skip
        why = "torch's own partition stores less"
    return why


def _ways(start: State, torchs: frozenset[str], clock: Clock) -> Iterator[State]:
    """The joint graph with its values classified, in the ways that it may be split.

    The later ones are for graphs of which more would be stored than torch's own partition does, or exact mode if it
    recomputes what that partition recomputes (``torchs``).
    """
    joint = start.joint
    for given in (joint, replace(joint, kept=frozenset())) if joint.kept else (joint,):
        for without in ((), ("advance",)):
            state = run(replace(start, joint=given), PREPARE, clock, without=without)
            yield state
            yield replace(state, activations=rerunnable(state.activations, torchs))
            if not state.joint.gradients:
                break  # nothing was moved to forward


def _stores(
    split: State, counted: frozenset[str], hints: Mapping[str, int], without: frozenset[str] = frozenset()
) -> int:
    """Bytes between forward and backward; with checkpoints, those of the same plan without them.

    Args:
        without: names of values that do not count.
    """
    if split.segments:
        return stored_bytes(split.plan, hints)
    held = held_by(saved_by(split.halves[0], split.joint.num_fwd_outputs), counted)
    return evaluate(sum(size for node, size in held.items() if node.name not in without), hints)


def _warn_of_idle(gm: fx.GraphModule, options: Options) -> None:
    """Says which settings have no effect on this graph."""
    if (budget := adapter.recomputation_budget(gm)) < 1:
        warnings.warn(
            f"torch's activation_memory_budget={budget} has no effect under fxapprox: memory_budget={budget} has",
            stacklevel=3,
        )
    coded = options.checkpoint_bits is not None and options.checkpoint is None and options.memory_budget is None
    if coded and all(adapter.region_of(node) is None for node in gm.graph.nodes):
        warnings.warn(
            "checkpoint_bits has nothing to work on: no checkpoint=, and no torch.utils.checkpoint in this graph",
            stacklevel=3,
        )


def _traced(
    gm: fx.GraphModule, num_fwd_outputs: int, static: tuple[int, ...], options: Options, handed: Handed
) -> Joint:
    """The joint graph as torch traced it."""
    traced = Joint(gm, num_fwd_outputs, static, made=_inputs_at(gm, handed.made - handed.held - handed.held_by_eager))
    if not handed.on or options.bits is not None:
        return traced
    # a decision on an output would come on top of the output
    return replace(traced, kept=frozenset(n.name for n in traced.outputs[0] if _is_made(n, traced)))


def _recomputed(joint: Joint, saved: Sequence[fx.Node]) -> frozenset[str]:
    """Names of the forward values that a backward which has these would compute again; products are none of them."""
    found: set[fx.Node] = set()
    stack = [source for node in joint.backward for source in node.all_input_nodes]
    while stack:
        node = stack.pop()
        if node.op == "call_function" and node not in joint.backward and node not in found and node not in saved:
            found.add(node)
            stack += node.all_input_nodes
    return frozenset(node.name for node in found if not runs_once(node) and not flops(node))


def _inputs_at(gm: fx.GraphModule, positions: Collection[int]) -> frozenset[str]:
    """Names of the inputs that stand at these positions in the Dynamo graph."""
    return frozenset(n.name for n in gm.graph.find_nodes(op="placeholder") if adapter.input_position(n) in positions)


def _is_made(output: object, joint: Joint) -> bool:
    """Whether a tensor that forward computes is returned."""
    return (
        isinstance(output, fx.Node) and output.op == "call_function" and output not in joint.backward
        and "val" in output.meta
    )  # fmt: skip
