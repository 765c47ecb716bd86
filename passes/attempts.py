"""Which settings a joint graph is split for: what was asked for, less where that cannot be, or what fits a budget."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from fxapprox import torch_adapter as adapter
from fxapprox.collector import collector_paused
from fxapprox.errors import FxApproxError, UnsupportedGraph
from fxapprox.ir.joint import Joint
from fxapprox.ir.records import Activation
from fxapprox.ir.tensors import flops
from fxapprox.memory.baseline import baseline_timeline
from fxapprox.memory.settings import Point
from fxapprox.memory.timeline import Timeline, timeline
from fxapprox.options import Options
from fxapprox.passes.budget import Setting, budget_bytes, choose, estimated_error, estimated_time, ladder
from fxapprox.passes.pipeline import SPLIT, stored_bytes
from fxapprox.passes.plan import plan
from fxapprox.passes.runner import Clock, State, run


@dataclass(frozen=True)
class Attempts:
    """Splits one joint graph, along the plan of any options.

    Attributes:
        start: the joint graph, its values classified, and the options.
        traced: the joint graph as torch traced it.
        baseline: names of the values that plain torch.compile would save.
        clock: gets the seconds of each pass.
        exact: {a value that could not be handled otherwise: why}.
    """

    start: State
    traced: Joint
    baseline: tuple[str, ...]
    clock: Clock
    exact: dict[str, str] = field(default_factory=dict)

    def as_asked(self) -> State:
        """The graph, split for the options; less is done of what they ask for, with a warning, where that cannot be.

        Raises:
            UnsupportedGraph: not even exact mode can be had, or ``options.strict`` is set.
        """
        for options, instead in _retreats(self.start.options):
            try:
                return self._along(options)
            except UnsupportedGraph as error:
                if not instead or options.strict:
                    raise
                warnings.warn(f"fxapprox {instead}: {error}", stacklevel=2)
        raise AssertionError("the last retreat raises")

    def within_budget(self) -> tuple[State, str] | None:
        """The graph, split for the cheapest setting whose peak fits the budget, and that setting in words.

        Returns: None where nothing has a lower peak than plain torch.compile.
        """
        options = self.start.options
        baseline = baseline_timeline(self.traced, self.baseline, options.lowering).peak(self.start.hints)
        assert options.memory_budget is not None
        budget = budget_bytes(options.memory_budget, baseline)
        fitting: dict[str, State] = {}

        def attempt(setting: Setting) -> Point:
            state, point = self._try(setting)
            if point.peak_bytes <= budget:  # the others are not kept: these graphs are large
                fitting[setting.text] = state
            return point

        point = choose(ladder(options), budget, attempt, baseline=baseline)
        return (fitting[point.setting], point.setting) if point is not None else None

    def pareto(self) -> tuple[Point, ...]:
        """The rungs of the ladder that a budget chooses from, tried."""
        shared = adapter.sharing_traces(adapter.fake_mode_of(self.traced.gm))
        with collector_paused(), adapter.lazy_modules(), shared:
            return tuple(self._try(rung.setting)[1] for rung in ladder(self.start.options))

    def exact_bytes(self, again: Collection[str]) -> int:
        """Bytes that exact mode stores if it recomputes these values as well."""
        values = rerunnable(self.start.activations, again)
        found = plan(values, _exact_mode(self.start.options), hints=self.start.hints)
        self.clock.lap("plan")
        return stored_bytes(found, self.start.hints)

    def _along(self, options: Options) -> State:
        """The graph, split for these options; checkpoints that are to lower the peak, and do not, are left out."""
        found = self._split(options)
        if not found.segments or isinstance(options.checkpoint, int):
            return found
        plain = self._split(replace(options, checkpoint=None))
        return found if self._peak(found) < self._peak(plain) else plain

    def _split(self, options: Options) -> State:
        """The graph, split along the options' plan; a value that cannot be handled is exact, with a warning."""
        while True:
            activations = tuple(
                _made_exact(a, self.exact[a.name]) if a.name in self.exact else a for a in self.start.activations
            )
            try:
                return run(replace(self.start, options=options, activations=activations), SPLIT, self.clock)
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

    def _try(self, setting: Setting) -> tuple[State, Point]:
        options, hints = setting.options, self.start.hints
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an average that cannot be had is no news here
            state = self._split(options)
        found = self._timeline(state)
        total = sum(map(flops, self.traced.forward_values))
        point = Point(
            setting.text, options, found.peak(hints), estimated_time(state.segments, total),
            estimated_error(state.plan, self.start.activations, options, hints), found,
        )  # fmt: skip
        return state, point

    def _timeline(self, state: State) -> Timeline:
        count, lowering = state.joint.num_fwd_outputs, self.start.options.lowering
        found = timeline(*state.halves, num_fwd_outputs=count, lowering=lowering, slices=state.slices)
        self.clock.lap("timeline")
        return found

    def _peak(self, state: State) -> int:
        return self._timeline(state).peak(self.start.hints)


def rerunnable(activations: tuple[Activation, ...], names: Collection[str]) -> tuple[Activation, ...]:
    """The values, of which those of these names may be recomputed from exact operands though we would not."""
    return tuple(replace(a, rerunnable=True) if a.name in names else a for a in activations)


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
    return Options(
        bits=None, slices=options.slices, min_bytes=options.min_bytes, lowering=options.lowering, strict=options.strict
    )


def _made_exact(value: Activation, why: str) -> Activation:
    return replace(value, approximable=False, reason=f"{value.reason}; exact: {why}") if value.approximable else value
