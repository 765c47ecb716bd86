"""How many bytes are alive at every moment of a training step: a model of what Inductor allocates.

Forward and backward are taken as kernels (``kernels.py``). A kernel's results are allocated before it runs, what it
reads for the last time is freed after it, and a result takes the place of such an operand where it may. What is saved
lives from forward to its last use in backward, outputs and gradients to the end. Parameters and inputs are not counted:
they were there before the step.

The order is that of the graph. Inductor may find a better one (``reorder_for_peak_memory``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import sympy
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.kernels import Kernel, Lowered, Value, lower
from fxapprox.sizes import Size, evaluate, renamed

Half = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of the schedule.

    Attributes:
        name: the node that the kernel ends with.
        half: of the training step.
        live: bytes alive while it runs.
        saved: those of them that are saved for backward.
    """

    name: str
    half: Half
    live: Size
    saved: Size


@dataclass(frozen=True)
class Timeline:
    """All moments of a training step, in order.

    Attributes:
        moments: forward's, then backward's.
        after_forward: bytes alive between the two: saved values and outputs.
        after_backward: bytes alive at the end: outputs and gradients.
    """

    moments: tuple[Moment, ...]
    after_forward: Size = 0
    after_backward: Size = 0

    def peak(self, values: Mapping[str, int]) -> int:
        """The most bytes alive at once.

        Args:
            values: of the symbolic sizes, by name; {} where all are static.
        """
        return max((evaluate(moment.live, values) for moment in self.moments), default=0)

    def peak_moment(self, values: Mapping[str, int]) -> Moment:
        """The (first) moment at which most bytes are alive.

        Raises:
            ValueError: there are no moments.
        """
        return max(self.moments, key=lambda moment: evaluate(moment.live, values))

    def renamed(self, names: Mapping[str, str]) -> Timeline:
        """The same with some symbols under other names."""

        def own(size: Size) -> Size:
            return size if isinstance(size, int) else renamed(size, names)

        moments = tuple(replace(m, live=own(m.live), saved=own(m.saved)) for m in self.moments)
        return Timeline(moments, own(self.after_forward), own(self.after_backward))

    @property
    def symbols(self) -> set[str]:
        """Names of the sizes that the bytes depend on."""
        return {s.name for m in self.moments if not isinstance(m.live, int) for s in m.live.free_symbols}  # type: ignore[attr-defined]


def joined(timelines: Sequence[Timeline]) -> Timeline:
    """The timeline of graphs that run one after the other: backward in reverse order, after the last forward."""
    if len(timelines) == 1:
        return timelines[0]
    moments: list[Moment] = []
    level: Size = 0
    for part in timelines:
        moments += (replace(m, live=m.live + level) for m in part.moments if m.half == "forward")
        level += part.after_forward
    after_forward = level
    for part in reversed(timelines):
        level -= part.after_forward
        moments += (replace(m, live=m.live + level) for m in part.moments if m.half == "backward")
        level += part.after_backward
    return Timeline(tuple(moments), after_forward, level)


def timeline(
    forward: fx.GraphModule, backward: fx.GraphModule, *, num_fwd_outputs: int, lowering: str = "inductor"
) -> Timeline:
    """What is alive when, from the two graphs as they go to Inductor.

    Args:
        num_fwd_outputs: how many of forward's outputs are the user's; the others are saved for backward.
        lowering: "inductor", or "eager": every result is memory until its last use, and what is saved lives on to the
            end of backward.
    """
    # backward takes over forward's layout
    channels_last = lowering == "inductor" and adapter.prefers_channels_last(forward)
    first, second = (lower(gm, lowering=lowering, channels_last=channels_last) for gm in (forward, backward))
    inputs = set(first.inputs.values())
    returned = [v for v in first.outputs[:num_fwd_outputs] if v is not None and v not in inputs]
    kept = [v for v in first.outputs[num_fwd_outputs:] if v is not None]
    taken = [second.inputs[n.name] for n in backward.graph.find_nodes(op="placeholder") if n.name in second.inputs]
    tangents = {n.name for n in backward.graph.find_nodes(op="placeholder") if adapter.is_tangent(n)}
    slots = [v for v in taken if v.name not in tangents]
    # by place: what forward saves is what backward takes
    places = zip(kept, slots, strict=False)
    taken_over = {slot for value, slot in places if value not in inputs and value not in returned}
    saved = {value for value in kept if value not in inputs and value not in returned}

    level = _Level()
    ahead = _run(first, "forward", level, counted=set(), saved=saved, forever=saved.union(returned))
    between = level.now()[0]
    counted = set(taken_over)
    for value in taken:
        if value.name in tangents:
            level.add(value.size, 1)
            counted.add(value)
    forever = taken_over if lowering == "eager" else set()
    gradients = {v for v in second.outputs if v is not None}
    behind = _run(second, "backward", level, counted=counted, saved=taken_over, forever=forever | gradients)
    return Timeline((*ahead, *behind), between, level.now()[0])


def _run(
    lowered: Lowered, half: Half, level: _Level, *, counted: set[Value], saved: set[Value], forever: set[Value]
) -> list[Moment]:
    """Runs one half from the level given, which it leaves as it is after that half.

    Args:
        counted: inputs that count.
        saved: values that are saved for backward.
        forever: values that live on.
    """
    last: dict[Value, int] = {}
    for at, kernel in enumerate(lowered.kernels):
        last.update((value, at) for value in (*kernel.makes, *kernel.reads))
    alive = set(counted)
    for value in [v for v in counted if v not in last and v not in forever]:
        level.add(value.size, -1, value in saved)
        alive.discard(value)
    moments = []
    for at, kernel in enumerate(lowered.kernels):
        dying = {v for v in kernel.reads if last[v] == at and v in alive and v not in forever}
        dying -= (replaced := _in_place(kernel, dying))
        for value in replaced:
            level.add(value.size, -1, value in saved)
        for value in kernel.makes:
            level.add(value.size, 1, value in saved)
        level.add(kernel.scratch, 1)
        moments.append(Moment(kernel.name, half, *level.now()))
        level.add(kernel.scratch, -1)
        unread = {v for v in kernel.makes if last[v] == at and v not in forever}
        alive |= {*kernel.makes} - unread
        for value in (*dying, *unread):
            level.add(value.size, -1, value in saved)
        alive -= dying | replaced
    return moments


def _in_place(kernel: Kernel, dying: set[Value]) -> set[Value]:
    """Those of the dying operands whose memory a result takes over."""
    taken: set[Value] = set()
    for made in kernel.makes:
        for value in kernel.whole & dying - taken:
            if value.elements == made.elements and value.dtype == made.dtype:
                taken.add(value)
                break
    return taken


class _Level:
    """Bytes alive, and saved: an int, and multiples of expressions of symbolic sizes."""

    def __init__(self) -> None:
        self._bytes = [0, 0]
        self._terms: tuple[dict[sympy.Expr, int], dict[sympy.Expr, int]] = {}, {}

    def add(self, size: Size, times: int, saved: bool = False) -> None:
        for which in (0, 1) if saved else (0,):
            if isinstance(size, int):
                self._bytes[which] += times * size
            else:
                count, term = _split(size)
                self._terms[which][term] = self._terms[which].get(term, 0) + times * count

    def now(self) -> tuple[Size, Size]:
        live, saved = (_total(n, terms.items()) for n, terms in zip(self._bytes, self._terms, strict=True))
        return live, saved


def _total(number: int, terms: Iterable[tuple[sympy.Expr, int]]) -> Size:
    symbolic = [count * term for term, count in terms if count]
    return sympy.Add(*symbolic, number) if symbolic else number


@lru_cache(maxsize=4096)
def _split(size: sympy.Expr) -> tuple[int, sympy.Expr]:
    count, term = size.as_coeff_Mul()
    return (int(count), term) if count.is_Integer else (1, size)
