"""The report of one graph as a frozen record: what backward reads, what is stored for it, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import sympy
import torch
from torch import fx

from fxapprox.errors import FxApproxError
from fxapprox.files.plan_file import SavedEntry, SavedPlan
from fxapprox.ir.records import Activation, Decision, Segment, Slices, Spliced
from fxapprox.ir.source import GraphBreak
from fxapprox.memory.settings import Point, is_lower
from fxapprox.memory.timeline import Timeline
from fxapprox.options import Options
from fxapprox.sizes import SizeSymbol, evaluate, hints_of, resolve
from fxapprox.torch_adapter import Partition

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ReportData:
    """What happens to the activations of one training graph.

    Bytes are given at the sizes it was traced with. Where sizes are dynamic, they are also given as expressions, and
    ``at`` evaluates them for other sizes.

    Attributes:
        baseline_bytes: what the autograd graph would hold between forward and backward under plain torch.compile:
            memory of saved tensors, each piece once, beyond parameters, buffers and the user's inputs.
        saved_bytes: what it holds under this plan; ``measure.stored_bytes`` measures the same.
        decisions: one for each value that is stored, here or by plain torch.compile; largest first.
        fallback: why the graph was left as it is, or "".
        seconds: time spent in each step of the pipeline.
        joint, forward, backward: the graphs, as they went to Inductor.
        graphs: where this is the sum of several graphs: their reports.
        copies: the inputs (weights, images) of which plain torch.compile on this device stores a second, channels-last
            copy for backward, because Inductor's lowering makes one; the partitioner does not see them. Both totals
            have them, ``decisions`` do not.
        gradients: those of the decisions that are gradients, which forward computes and backward returns, mostly of a
            weight: backward would have them in memory from its first operator on, whoever computes them.
        baseline_expr, saved_expr: the bytes as expressions of the sizes.
        sizes: the dynamic dimensions that the expressions are made of.
        conditions: what the sizes have to fulfil for this graph to serve them.
        timeline: what is alive when, in a training step.
        baseline_timeline: gives that of plain torch.compile; made at the first call.
        setting: what a memory budget chose, in words; "" without one.
        options: what was asked for; None where that is not known.
        segments: what backward computes again from checkpoints.
        outputs: how many of what forward returns is the user's; the rest is saved.
        activations: every forward value of the joint graph, classified; none if it was left alone.
        recomputed: names of those of them that backward recomputes from what is stored.
        spliced: where codecs stand in the two graphs.
        slices: the parts that run slice by slice.
        kept: {pass: the two graphs as it left them}, of the passes named to ``passes.pipeline.keeping``.
        inputs: {input of the graphs: what the user calls it}, for example "blocks.0.weight".
        breaks: the graph breaks between the graphs, from ``explain``; what crosses one counts once.
        shared: how many compiled models have run the graph: it serves all that are alike, and stores this for each.
    """

    baseline_bytes: int
    saved_bytes: int
    decisions: tuple[Decision, ...]
    fallback: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    joint: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    forward: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    backward: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    graphs: tuple[Self, ...] = ()
    copies: tuple[Decision, ...] = field(default=(), kw_only=True)
    gradients: tuple[Decision, ...] = field(default=(), kw_only=True)
    baseline_expr: sympy.Expr = field(kw_only=True)
    saved_expr: sympy.Expr = field(kw_only=True)
    sizes: tuple[SizeSymbol, ...] = field(default=(), kw_only=True)
    conditions: tuple[sympy.Basic, ...] = field(default=(), kw_only=True, repr=False)
    entries: tuple[SavedEntry, ...] = field(default=(), kw_only=True, repr=False)
    timeline: Timeline = field(default=Timeline(()), kw_only=True, repr=False, compare=False)
    baseline_timeline: Callable[[], Timeline] = field(
        default=lambda: Timeline(()), kw_only=True, repr=False, compare=False
    )
    setting: str = field(default="", kw_only=True)
    segments: tuple[Segment, ...] = field(default=(), kw_only=True, repr=False)
    breaks: tuple[GraphBreak, ...] = field(default=(), kw_only=True)
    settings: Callable[[], tuple[Point, ...]] = field(default=tuple, kw_only=True, repr=False, compare=False)
    options: Options | None = field(default=None, kw_only=True, repr=False, compare=False)
    outputs: int = field(default=0, kw_only=True, repr=False)
    activations: tuple[Activation, ...] = field(default=(), kw_only=True, repr=False)
    recomputed: tuple[str, ...] = field(default=(), kw_only=True, repr=False)
    spliced: tuple[Spliced, ...] = field(default=(), kw_only=True, repr=False)
    slices: tuple[Slices, ...] = field(default=(), kw_only=True, repr=False)
    kept: Mapping[str, Partition] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    inputs: Mapping[str, str] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    shared: int = field(default=1, kw_only=True, compare=False)

    def without_graphs(self) -> Self:
        """All but what draws the graphs or plans anew, for when the model is gone: those are most of it."""
        baseline = self.baseline_timeline()

        def gone() -> tuple[Point, ...]:
            raise FxApproxError("the model that this graph was planned for is gone; fxapprox.explain plans anew")

        return replace(
            self, joint=None, forward=None, backward=None, activations=(), spliced=(), recomputed=(), kept={},
            baseline_timeline=lambda: baseline, settings=gone,
        )  # fmt: skip

    @property
    def plan(self) -> SavedPlan:
        """The plan as ``plan.save(path)`` writes it, for ``compile(model, plan=path)``."""
        return SavedPlan(tuple(report.entries for report in self.distinct if report.entries))

    @property
    def distinct(self) -> tuple[Self, ...]:
        """The graphs, each of them once however often a step runs it; itself where it is the report of one."""
        return tuple({id(graph): graph for graph in self.graphs or (self,)}.values())

    @property
    def peak_bytes(self) -> int:
        """The most bytes that a training step has allocated at once, as our model of Inductor predicts it.

        Parameters and inputs are not counted; outputs, gradients and temporaries are.
        """
        return self.timeline.peak(hints_of(self.sizes))

    @property
    def baseline_peak_bytes(self) -> int:
        """The same for plain torch.compile."""
        return self.baseline_timeline().peak(hints_of(self.sizes))

    @property
    def gradient_bytes(self) -> int:
        """What is alive at the end of a training step, in the predicted peak as well: gradients and outputs."""
        return evaluate(self.timeline.after_backward, hints_of(self.sizes))

    @property
    def exact_bytes(self) -> int:
        """All values of ``decisions``, if each of them were saved as it is."""
        return sum(math.prod(d.shape) * getattr(torch, d.dtype).itemsize for d in self.decisions)

    def pareto(self) -> tuple[Point, ...]:
        """What each step down in memory costs: the settings that a budget chooses from, by falling predicted peak.

        Those without a lower peak than the one before are left out. Takes about as long as planning
        once for each; nothing is compiled or run.

        Returns: for a model with several graphs the settings of all of them together.
        """
        hints = hints_of(self.sizes)
        found: list[Point] = []
        for point in self.settings():
            peak = point.timeline.peak(hints)
            if not found or is_lower(peak, found[-1].peak_bytes):
                found.append(replace(point, peak_bytes=peak))
        return tuple(found)

    @property
    def baseline_copies_bytes(self) -> int:
        """How much of ``baseline_bytes`` is copies of inputs."""
        return sum(copy.bytes_before for copy in self.copies)

    @property
    def early_gradient_bytes(self) -> int:
        """How much of ``saved_bytes`` is gradients that backward only returns."""
        return sum(gradient.bytes_after for gradient in self.gradients)

    @property
    def unknown(self) -> dict[str, int]:
        """{operator that fxapprox does not know: bytes that are stored exactly because it reads them}, largest first.

        A value that several of them read counts for each.
        """
        found: dict[str, int] = {}
        for decision in self.decisions:
            for name in decision.unknown:
                found[name] = found.get(name, 0) + decision.bytes_after
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    @property
    def unknown_bytes(self) -> int:
        """Bytes that are stored exactly because an operator that fxapprox does not know reads them."""
        return sum(decision.bytes_after for decision in self.decisions if decision.unknown)

    @property
    def ratio(self) -> float:
        """How many times less is stored; 1.0 where nothing is stored either way."""
        return (
            self.baseline_bytes / self.saved_bytes
            if self.saved_bytes
            else 1.0
            if not self.baseline_bytes
            else float("inf")
        )

    @property
    def average_bits(self) -> float | None:
        """Bits per element over all values whose code has a loss, scales aside; None where there are none."""
        coded = [(decision.bits, math.prod(decision.shape)) for decision in self.decisions if decision.bits is not None]
        elements = sum(count for _, count in coded)
        return sum(bits * count for bits, count in coded) / elements if elements else None

    def at(self, size: int | Mapping[str, int]) -> Self:
        """The report with all bytes (and shapes) for other sizes; the plan is the same.

        Args:
            size: {name of a size in ``sizes``: its value}, or the value where there is one size.

        Raises:
            OptionError: a size is unknown or missing, or the graph does not serve it.
        """
        return self._at(resolve(size, self.sizes, self.conditions))

    def _at(self, values: Mapping[str, int]) -> Self:
        decisions = [decision.at(values) for decision in self.decisions]
        return replace(
            self,
            baseline_bytes=evaluate(self.baseline_expr, values),
            saved_bytes=evaluate(self.saved_expr, values),
            decisions=tuple(sorted(decisions, key=largest_first)),
            copies=tuple(copy.at(values) for copy in self.copies),
            gradients=tuple(gradient.at(values) for gradient in self.gradients),
            graphs=tuple(graph._at(values) for graph in self.graphs),
            sizes=tuple(replace(symbol, hint=values[symbol.name]) for symbol in self.sizes),
        )


def largest_first(decision: Decision) -> tuple[int, int]:
    """Return what decisions are sorted by."""
    return -decision.bytes_before, -decision.bytes_after
