"""The pipeline: the steps from a joint graph to its two rewritten halves, by name and in order."""

from __future__ import annotations

import hashlib
import pathlib
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import channels_last_images
from fxapprox.analysis.rerun import runs_once
from fxapprox.codecs import Group
from fxapprox.collector import collector_paused
from fxapprox.errors import FxApproxError, UnsupportedGraph
from fxapprox.files.plan_file import SavedPlan
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import TAUGHT
from fxapprox.ir.records import Activation, Plan, Segment, Spliced
from fxapprox.ir.tensors import flops
from fxapprox.memory.between import NOTHING, Handed
from fxapprox.memory.held import held_by, saved_by
from fxapprox.memory.settings import Point
from fxapprox.memory.timeline import Timeline, timeline
from fxapprox.options import Options
from fxapprox.passes.advance import advance
from fxapprox.passes.allocate import allocate
from fxapprox.passes.budget import Setting, budget_bytes, choose, estimated_error, estimated_time, ladder
from fxapprox.passes.checkpoint import checkpoint
from fxapprox.passes.classify import classify
from fxapprox.passes.encode import Parts, encode
from fxapprox.passes.lay_out import lay_out
from fxapprox.passes.materialize import materialize, settle_products
from fxapprox.passes.partition import partition
from fxapprox.passes.pin_inputs import copied_inputs, pin_inputs
from fxapprox.passes.plan import plan
from fxapprox.passes.restore import restore
from fxapprox.passes.stand_in import stand_in
from fxapprox.sizes import evaluate, hints_of
from fxapprox.torch_adapter import Partition

ROOT = pathlib.Path(__file__).resolve().parent


@dataclass(frozen=True)
class Rewrite:
    """A joint graph and what became of it.

    Attributes:
        joint: the prepared joint graph that was split.
        traced: the prepared joint graph as torch traced it, before gradients were moved to forward.
        forward, backward: the rewritten graphs, as they go to Inductor.
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

    @property
    def spliced(self) -> tuple[Spliced, ...]:
        """Where codecs stand in the two graphs."""
        planned = (parts.spliced for parts in self.parts if parts.spliced is not None)
        return (*planned, *(spliced for segment in self.segments for spliced in segment.spliced))


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

    Raises:
        UnsupportedGraph: the graph cannot be handled, and ``options.strict`` is set.
        OptionError: no setting fits ``options.memory_budget``.
    """
    with collector_paused(), adapter.general_sizes(gm):
        static = tuple(static_lifetime_input_indices or ())
        return _rewrite(gm, joint_inputs, num_fwd_outputs, static, options, handed, revise)


def _rewrite(
    gm: fx.GraphModule,
    joint_inputs: Sequence[Any],
    num_fwd_outputs: int,
    static: tuple[int, ...],
    options: Options,
    handed: Handed,
    revise: Callable[[Plan, Sequence[Activation]], Plan] | None,
) -> Rewrite:
    clock = _Clock()
    if (budget := adapter.recomputation_budget(gm)) < 1:
        warnings.warn(
            f"torch's activation_memory_budget={budget} has no effect under fxapprox: memory_budget={budget} has",
            stacklevel=2,
        )
    if _codes_nothing(options) and all(adapter.region_of(node) is None for node in gm.graph.nodes):
        warnings.warn(
            "checkpoint_bits has nothing to work on: no checkpoint=, and no torch.utils.checkpoint in this graph",
            stacklevel=2,
        )
    adapter.prepare_joint(gm)
    if options.lowering == "eager":
        adapter.seed_random_numbers(gm)
    counted, counted_for_plain = (_inputs_at(gm, handed.counted - held) for held in (handed.held, handed.held_by_plain))
    made = _inputs_at(gm, handed.made - handed.held)
    traced = Joint(gm, num_fwd_outputs, static, made=made)
    if handed.on and options.bits is None:  # a decision on an output would come on top of the output
        traced = replace(traced, kept=frozenset(n.name for n in traced.outputs[0] if _is_made(n, traced)))
    clock.lap("prepare")
    saved = adapter.default_saved(gm, num_fwd_outputs=num_fwd_outputs, static_inputs=static)
    baseline = tuple(n.name for n in saved)
    copied = copied_inputs(gm, saved)
    plain, hints = sum(held_by(saved, counted_for_plain).values()), hints_of(adapter.dynamic_sizes(gm))
    clock.lap("baseline")
    # what the user has said value by value, or by its peak, may store more than plain torch.compile
    prescribed = revise is not None or any((options.policy, options.plan, options.memory_budget))
    why = ""
    try:
        most: int | None = None
        torchs = _recomputed(traced, saved)
        for joint, again in _ways(traced, torchs, clock):
            activations = _rerunnable(classify(joint, min_bytes=options.min_bytes), again)
            clock.lap("classify")
            if all(a.demand is None for a in activations):
                break
            split = _Splitter(joint, traced, activations, baseline, options, revise, clock)
            halves = split.within_budget() if options.memory_budget is not None else split.as_asked()
            if halves is None:
                why = "nothing has a lower peak"
                break
            stored = evaluate(sum(held_by(saved_by(halves.forward, num_fwd_outputs), counted).values()), hints)
            if halves.segments:  # the same plan with checkpoints as without
                stored = _bytes_of(halves.plan, hints)
            if most is None and not prescribed:
                most = min(evaluate(plain, hints), split.exact_bytes(torchs))
            if most is None or stored <= most:
                return Rewrite(
                    joint, traced, halves.forward, halves.backward, activations, halves.plan, halves.parts,
                    halves.segments, baseline, copied, halves.recopied, counted, counted_for_plain, "", clock.laps,
                    halves.setting, split.pareto,
                )  # fmt: skip
            why = "torch's own partition stores less"
    except UnsupportedGraph as error:
        if options.strict:
            raise
        why = str(error)
        warnings.warn(f"fxapprox stores this graph exactly: {why}", stacklevel=2)
    forward, backward = _exact(gm, joint_inputs, num_fwd_outputs, static)
    return Rewrite(
        traced, traced, forward, backward,
        baseline=baseline, copied=copied, recopied=copied, counted=counted, counted_for_plain=counted_for_plain,
        fallback=why, seconds=clock.laps,
    )  # fmt: skip


def _ways(traced: Joint, torchs: frozenset[str], clock: _Clock) -> Iterator[tuple[Joint, frozenset[str]]]:
    """Joint graphs, and names of what may be recomputed from exact operands though we would not.

    The later ones are for graphs of which more would be stored than torch's own partition does, or exact mode if it
    recomputes what that partition recomputes (``torchs``).
    """
    plain = stand_in(traced)
    clock.lap("stand in")
    advanced = advance(plain)
    clock.lap("advance")
    yield advanced, frozenset()
    yield advanced, torchs
    if advanced is not plain:
        yield plain, frozenset()
        yield plain, torchs


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


def _rerunnable(activations: tuple[Activation, ...], names: Collection[str]) -> tuple[Activation, ...]:
    return tuple(replace(a, rerunnable=True) if a.name in names else a for a in activations)


def _inputs_at(gm: fx.GraphModule, positions: Collection[int]) -> frozenset[str]:
    """Names of the inputs that stand at these positions in the Dynamo graph."""
    return frozenset(n.name for n in gm.graph.find_nodes(op="placeholder") if adapter.input_position(n) in positions)


def _is_made(output: object, joint: Joint) -> bool:
    """Whether a tensor that forward computes is returned."""
    return (
        isinstance(output, fx.Node) and output.op == "call_function" and output not in joint.backward
        and "val" in output.meta
    )  # fmt: skip


@dataclass(frozen=True)
class _Halves:
    """A joint graph, split along one plan; see ``Rewrite``."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    plan: Plan
    parts: tuple[Parts, ...]
    segments: tuple[Segment, ...]
    recopied: tuple[str, ...]
    setting: str = ""


@dataclass(frozen=True)
class _Splitter:
    """Splits one joint graph, along the plan of any options."""

    joint: Joint
    traced: Joint
    activations: tuple[Activation, ...]
    baseline: tuple[str, ...]
    options: Options
    revise: Callable[[Plan, Sequence[Activation]], Plan] | None
    clock: _Clock
    exact: dict[str, str] = field(default_factory=dict)  # values that could not be handled otherwise: why

    def as_asked(self) -> _Halves:
        """The two graphs for the options; less is done of what they ask for, with a warning, where that cannot be.

        Raises:
            UnsupportedGraph: not even exact mode can be had, or ``options.strict`` is set.
        """
        for options, instead in _retreats(self.options):
            try:
                return self.along(options)
            except UnsupportedGraph as error:
                if not instead or options.strict:
                    raise
                warnings.warn(f"fxapprox {instead}: {error}", stacklevel=2)
        raise AssertionError("the last retreat raises")

    def exact_bytes(self, again: frozenset[str]) -> int:
        """Bytes that exact mode stores if it recomputes these values as well."""
        found = plan(_rerunnable(self.activations, again), _exact_mode(self.options), hints=self._hints)
        self.clock.lap("plan")
        return _bytes_of(found, self._hints)

    def along(self, options: Options) -> _Halves:
        """The two graphs for these options; checkpoints that are to lower the peak, and do not, are left out."""
        found = self._split(options)
        if not found.segments or isinstance(options.checkpoint, int):
            return found
        plain = self._split(replace(options, checkpoint=None))
        return found if self._peak(found) < self._peak(plain) else plain

    def _split(self, options: Options) -> _Halves:
        """The two graphs along the options' plan; a value that cannot be handled is exact, with a warning."""
        while True:
            activations = tuple(_made_exact(a, self.exact[a.name]) if a.name in self.exact else a
                                for a in self.activations)  # fmt: skip
            try:
                return self._split_along(options, activations)
            except FxApproxError as error:
                found = [name for name in getattr(error, "values", ()) if name not in self.exact]
                if options.strict or not found:
                    raise
                self.exact.update(dict.fromkeys(found, str(error)))
                warnings.warn(f"fxapprox keeps {', '.join(map(repr, found))} exact: {error}", stacklevel=2)
            except Warning:
                raise  # the user's filters make errors of them
            except Exception as error:
                why = f"an error of fxapprox's own, please report it: {type(error).__name__}: {error}"
                raise UnsupportedGraph("split", why) from error

    def _split_along(self, options: Options, activations: tuple[Activation, ...]) -> _Halves:
        count, lap = self.joint.num_fwd_outputs, self.clock.lap
        chosen = _chosen(activations, options, self._hints)
        chosen = self.revise(chosen, activations) if self.revise is not None else chosen
        lap("plan")
        forward, backward = partition(self.joint, chosen)
        lap("partition")
        images = channels_last_images(forward) if options.lowering == "inductor" else frozenset()
        parts = encode(forward, backward, chosen, num_fwd_outputs=count, images=images)
        lap("encode")
        pin_inputs(forward, num_fwd_outputs=count)
        materialize(forward)
        recopied = copied_inputs(forward, forward.graph.find_nodes(op="output")[0].args[0][count:])
        forward, backward = adapter.finish_split(forward, backward)
        settle_products(backward)
        lap("finish")
        segments: tuple[Segment, ...] = ()
        if options.checkpoint is not None:
            segments = checkpoint(
                forward, backward, parts, options.checkpoint, num_fwd_outputs=count,
                codec=Group(options.checkpoint_bits) if options.checkpoint_bits else None,
                activations=activations, images=images, gradients=self.joint.gradients,
            )  # fmt: skip
            lap("checkpoint")
        if images:
            lay_out(backward)
            lap("lay out")
        return _Halves(forward, backward, chosen, parts, segments, recopied)

    def within_budget(self) -> _Halves | None:
        """The two graphs for the cheapest setting whose peak fits the budget; None: leave the graph alone."""
        baseline = self._baseline_peak()
        assert self.options.memory_budget is not None
        budget = budget_bytes(self.options.memory_budget, baseline)
        fitting: dict[str, _Halves] = {}

        def attempt(setting: Setting) -> Point:
            halves, point = self._try(setting)
            if point.peak_bytes <= budget:  # the others are not kept: these graphs are large
                fitting[setting.text] = halves
            return point

        point = choose(ladder(self.options), budget, attempt, baseline=baseline)
        return replace(fitting[point.setting], setting=point.setting) if point is not None else None

    def pareto(self) -> tuple[Point, ...]:
        """The rungs of the ladder that a budget chooses from, tried."""
        with collector_paused():
            return tuple(self._try(rung.setting)[1] for rung in ladder(self.options))

    def _try(self, setting: Setting) -> tuple[_Halves, Point]:
        options = setting.options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an average that cannot be had is no news here
            halves = self._split(options)
        found = self._timeline(halves)
        total = sum(map(flops, self.traced.forward_values))
        point = Point(
            setting.text, options, found.peak(self._hints), estimated_time(halves.segments, total),
            estimated_error(halves.plan, self.activations, options, self._hints), found,
        )  # fmt: skip
        return halves, point

    def _timeline(self, halves: _Halves) -> Timeline:
        count, lowering = self.joint.num_fwd_outputs, self.options.lowering
        found = timeline(halves.forward, halves.backward, num_fwd_outputs=count, lowering=lowering)
        self.clock.lap("liveness")
        return found

    def _peak(self, halves: _Halves) -> int:
        return self._timeline(halves).peak(self._hints)

    def _baseline_peak(self) -> int:
        return baseline_timeline(self.traced, self.baseline, self.options.lowering).peak(self._hints)

    @property
    def _hints(self) -> dict[str, int]:
        return hints_of(adapter.dynamic_sizes(self.joint.gm))


def _codes_nothing(options: Options) -> bool:
    """Whether there are bits for boundaries, but only the user could have made some."""
    return options.checkpoint_bits is not None and options.checkpoint is None and options.memory_budget is None


def baseline_timeline(joint: Joint, saved: Sequence[str], lowering: str) -> Timeline:
    """What is alive when under plain torch.compile, which saves these values."""
    nodes = {node.name: node for node in joint.gm.graph.nodes}
    halves = adapter.split(
        joint.gm, [nodes[name] for name in saved],
        num_fwd_outputs=joint.num_fwd_outputs, static_inputs=joint.static_inputs,
    )  # fmt: skip
    forward, backward = adapter.finish_split(*halves)
    return timeline(forward, backward, num_fwd_outputs=joint.num_fwd_outputs, lowering=lowering, plain=True)


def _retreats(options: Options) -> list[tuple[Options, str]]:
    """The options and what they ask for less and less of, each with what to tell the user if it fails; "": nothing."""
    exact, found = _exact_mode(options), []
    if options.checkpoint is not None:
        found.append((options, "computes nothing of this graph again"))
        options = replace(options, checkpoint=None, checkpoint_bits=None)
    if options != exact:
        found.append((options, "stores this graph without loss"))
    return [*found, (exact, "")]


def _exact_mode(options: Options) -> Options:
    return Options(bits=None, min_bytes=options.min_bytes, lowering=options.lowering, strict=options.strict)


def _made_exact(value: Activation, why: str) -> Activation:
    return replace(value, approximable=False, reason=f"{value.reason}; exact: {why}") if value.approximable else value


def _chosen(activations: tuple[Activation, ...], options: Options, hints: Mapping[str, int]) -> Plan:
    """The plan that the options ask for."""
    if isinstance(options.plan, SavedPlan) and any(a.demand is not None for a in activations):
        return restore(options.plan, activations, options, hints)
    chosen = plan(activations, options, hints=hints)
    if options.bits != "auto":
        return chosen
    allocated = allocate(chosen, activations, options, hints)
    exact = plan(activations, replace(options, bits=None), hints=hints)
    return min(allocated, exact, key=lambda each: _bytes_of(each, hints))


def _bytes_of(chosen: Plan, hints: Mapping[str, int]) -> int:
    return sum(evaluate(entry.nbytes, hints) for entry in chosen.stored)


def _exact(gm: fx.GraphModule, joint_inputs: Sequence[Any], num_fwd_outputs: int, static: tuple[int, ...]) -> Partition:
    return adapter.exact_partition(
        gm, joint_inputs, num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=list(static)
    )


class _Clock:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = self.laps.get(name, 0.0) + now - self._last, now


@cache
def source_hash() -> str:
    """Identifies our source: a compiled graph in a cache is stale once any file of ours changes."""
    digest = hashlib.sha256()
    for folder in (pathlib.Path(adapter.__file__).resolve().parents[1], ROOT):  # a link to ours is not followed
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()


def cache_key(options: Options) -> str | None:
    """What steers the rewrite, for Inductor's caches; None (no caching) where the user's code without ``uuid`` does."""
    return options.key and f"fxapprox-{source_hash()}-{options.key}-{sorted(TAUGHT.items())!r}"
