"""How many bytes are alive at every moment of a training step: a model of what Inductor allocates.

Forward and backward are taken as kernels (``lower.py``). A kernel's results are allocated before it runs, what it
reads for the last time is freed after it, and a result takes the place of such an operand where it may. What is saved
lives from forward to its last use in backward, outputs and gradients to the end. Parameters and inputs are not counted:
they were there before the step.

Beside the level at every moment, the timeline keeps the life of every piece of memory, of which the level is the sum.

The order is that of the graph. Inductor may find a better one (``reorder_for_peak_memory``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import sympy
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import Codec
from fxapprox.ir.operators import op_name
from fxapprox.ir.records import Slices
from fxapprox.ir.source import module_path
from fxapprox.memory.kernels import Kernel, Lowered, Value
from fxapprox.memory.lower import lower
from fxapprox.sizes import Size, evaluate, renamed

Half = Literal["forward", "backward"]
Kind = Literal["saved", "output", "gradient", "tangent", "temporary", "scratch"]
Role = Literal["operator", "again", "codec"]


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of the schedule: a kernel, named after the node that it ends with.

    Attributes:
        name: of that node.
        half: of the training step.
        live: bytes alive while it runs.
        saved: those of them that are saved for this graph's backward.
        op, module: of the node, e.g. "aten.mm", "blocks.0.mlp".
        role: "again" for an operator of forward that backward runs again, "codec" for what encodes or decodes.
    """

    name: str
    half: Half
    live: Size
    saved: Size
    op: str = ""
    module: str = ""
    role: Role = "operator"


@dataclass(frozen=True, slots=True)
class Life:
    """One piece of memory, from the moment that allocates it to the last that needs it.

    Attributes:
        name: of the value: what is saved is named as backward takes it, until ``Timeline.named``; a kernel's workspace
            as the kernel.
        kind: "saved" for backward, forward's "output", a "gradient" of parameters or inputs, a "tangent" (a gradient
            that backward is given), a "temporary", or "scratch": the workspace of one kernel.
        size: in bytes.
        start: index of the first moment at which it is alive.
        until: index after the last one; None: it stays when the step is over.
        codec: of a code that is kept in place of the value.
    """

    name: str
    kind: Kind
    size: Size
    start: int
    until: int | None
    codec: Codec | None = None

    @property
    def text(self) -> str:
        """What is kept, in words: "relu as 4-bit threshold"."""
        return self.name if self.codec is None else f"{self.name} as {self.codec.text}"


@dataclass(frozen=True)
class Timeline:
    """All moments of a training step, in order.

    Attributes:
        moments: forward's, then backward's.
        after_forward: bytes alive between the two: saved values and outputs.
        after_backward: bytes alive at the end: outputs and gradients.
        lives: of all memory; at every moment those that are alive add up to ``live``.
    """

    moments: tuple[Moment, ...]
    after_forward: Size = 0
    after_backward: Size = 0
    lives: tuple[Life, ...] = field(default=(), repr=False)

    @property
    def forward_moments(self) -> int:
        """How many of the moments are forward's."""
        return sum(moment.half == "forward" for moment in self.moments)

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
        lives = tuple(replace(life, size=own(life.size)) for life in self.lives)
        return Timeline(moments, own(self.after_forward), own(self.after_backward), lives)

    def named(self, kept: Mapping[str, tuple[str, Codec | None]]) -> Timeline:
        """The same, where what is saved is known: by the name that it has here, the value and the codec of its code."""
        lives = tuple(
            replace(life, name=kept[life.name][0], codec=kept[life.name][1])
            if life.kind == "saved" and life.name in kept else life for life in self.lives
        )  # fmt: skip
        return replace(self, lives=lives)

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
    forward_at, backward_at = [], [0] * len(timelines)  # where the halves of each graph begin
    for part in timelines:
        forward_at.append(len(moments))
        moments += (replace(m, live=m.live + level) for m in part.moments if m.half == "forward")
        level += part.after_forward
    after_forward = level
    for index, part in reversed(list(enumerate(timelines))):
        level -= part.after_forward
        backward_at[index] = len(moments)
        moments += (replace(m, live=m.live + level) for m in part.moments if m.half == "backward")
        level += part.after_backward
    lives = [
        _moved(life, part.forward_moments, first, second)
        for part, first, second in zip(timelines, forward_at, backward_at, strict=True)
        for life in part.lives
    ]
    return Timeline(tuple(moments), after_forward, level, tuple(lives))


def _moved(life: Life, forward: int, first: int, second: int) -> Life:
    """A life of a graph with so many moments in forward, whose halves begin at the moments ``first`` and ``second``."""

    def place(moment: int) -> int:
        return moment + first if moment < forward else moment - forward + second

    until = life.until
    if until == forward and life.kind == "saved":  # freed when its own backward begins
        until = second
    elif until is not None:
        until = place(until - 1) + 1
    return replace(life, start=place(life.start), until=until)


def timeline(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    *,
    num_fwd_outputs: int,
    lowering: str = "inductor",
    plain: bool = False,
    slices: Sequence[Slices] = (),
) -> Timeline:
    """What is alive when, from the two graphs as they go to Inductor.

    Args:
        num_fwd_outputs: how many of forward's outputs are the user's; the others are saved for backward.
        lowering: "inductor", or "eager": every result is memory until its last use, and what is saved lives on to the
            end of backward.
        plain: whether plain torch.compile compiles them.
        slices: the parts that run slice by slice.
    """
    channels_last = lowering == "inductor" and adapter.prefers_channels_last(forward)  # backward takes it over
    halves: tuple[tuple[fx.GraphModule, adapter.Half], ...] = ((forward, "forward"), (backward, "backward"))
    first, second = (
        lower(
            gm, lowering=lowering, channels_last=channels_last, half=None if plain else half,
            slices=[names for part in slices if part.half == half for names in part.names],
        )
        for gm, half in halves
    )  # fmt: skip
    inputs = set(first.inputs.values())
    returned = {v for v in first.outputs[:num_fwd_outputs] if v is not None and v not in inputs}
    kept = [v for v in first.outputs[num_fwd_outputs:] if v is not None]
    taken = [second.inputs[n.name] for n in backward.graph.find_nodes(op="placeholder") if n.name in second.inputs]
    tangents = {n.name for n in backward.graph.find_nodes(op="placeholder") if adapter.is_tangent(n)}
    slots = [v for v in taken if v.name not in tangents]
    saved = {v for v in kept if v not in inputs and v not in returned}
    # by place: what forward saves is what backward takes
    places = [(value, slot) for value, slot in zip(kept, slots, strict=False) if value in saved]
    known_as: dict[Value, Value] = {}
    second = _sharing(second, {slot: known_as.setdefault(value, slot) for value, slot in places})
    incoming = {v for v in taken if v.name in tangents}

    memory = _Memory()
    kinds: dict[Value, Kind] = {**dict.fromkeys(saved, "saved"), **dict.fromkeys(returned, "output")}
    ahead = _run(first, "forward", memory, kinds=kinds, counted=set(), forever=set(kinds))
    between = memory.now()[0]
    for value, slot in known_as.items():
        memory.hand_over(value, slot)
    gradients = {v for v in second.outputs if v is not None}
    kinds = {**dict.fromkeys(incoming, "tangent"), **dict.fromkeys(gradients, "gradient")}
    for value in incoming:
        memory.allocate(value, kinds[value])
    carried = set(known_as.values())
    stays = carried if lowering == "eager" else set()
    behind = _run(second, "backward", memory, kinds=kinds, counted=incoming | carried, forever=gradients | stays)
    moments = _described(ahead, forward) + _described(behind, backward)
    return Timeline(tuple(moments), between, memory.now()[0], memory.lives())


def _sharing(lowered: Lowered, slots: Mapping[Value, Value]) -> Lowered:
    """The graph with one slot for all saved values that lie in one memory: views, of which plain torch.compile saves
    several.

    Args:
        slots: {an input: the one that stands for its memory}.
    """
    shared = {slot for slot, known_as in slots.items() if slot is not known_as}
    if not shared:
        return lowered
    parts = shared | {slots[slot] for slot in shared}  # no result may take the place of a part
    kernels = [
        replace(k, reads=frozenset(slots.get(v, v) for v in k.reads), whole={m: w - parts for m, w in k.whole.items()})
        if not parts.isdisjoint(k.reads) else k
        for k in lowered.kernels
    ]  # fmt: skip
    return Lowered(kernels, lowered.inputs, [slots.get(v, v) if v is not None else None for v in lowered.outputs])


def _described(moments: Sequence[Moment], gm: fx.GraphModule) -> list[Moment]:
    """The moments of one graph with what its nodes say of them."""
    nodes = {node.name: node for node in gm.graph.nodes}
    return [
        replace(m, op=op_name(node), module=module_path(node), role=_role(node, m.half))
        for m in moments for node in [nodes[m.name]]
    ]  # fmt: skip


def _role(node: fx.Node, half: Half) -> Role:
    origin = adapter.traced_half(node)
    if origin is None:
        return "codec"
    return "again" if half == "backward" and origin == "forward" else "operator"


def _run(
    lowered: Lowered,
    half: Half,
    memory: _Memory,
    *,
    kinds: Mapping[Value, Kind],
    counted: Set[Value],
    forever: Set[Value],
) -> list[Moment]:
    """Runs one half on the memory given, which it leaves as it is after that half.

    Args:
        kinds: of the values that it allocates; others are temporaries.
        counted: inputs that count.
        forever: values that live on.
    """
    last: dict[Value, int] = {}
    for at, kernel in enumerate(lowered.kernels):
        last.update((value, at) for value in (*kernel.makes, *kernel.reads))
    alive = set(counted)
    waiting: list[Value] = []
    moments = []
    for at, kernel in enumerate(lowered.kernels):
        dying = {v for v in kernel.reads if last[v] == at and v in alive and v not in forever}
        for made in kernel.makes:
            if (replaced := _in_place(made, kernel, dying)) is not None:
                memory.free(replaced)
                dying.remove(replaced)
                alive.discard(replaced)
            memory.allocate(made, kinds.get(made, "temporary"))
            alive.add(made)
            if last[made] == at and made not in forever:
                dying.add(made)
        moments.append(Moment(kernel.name, half, *memory.run(kernel)))
        alive -= dying
        waiting += dying
        if kernel.frees:
            for value in waiting:
                memory.free(value)
            waiting = []
    for value in counted - last.keys() - forever:  # nothing marks the last use of what is not read
        memory.free(value)
    return moments


def _in_place(made: Value, kernel: Kernel, dying: Set[Value]) -> Value | None:
    """The dying value whose memory a result takes over."""
    places = (
        value
        for value in kernel.whole.get(made, frozenset()) & dying
        if (value.elements, value.dtype, value.channels_last) == (made.elements, made.dtype, made.channels_last)
    )
    return min(places, key=lambda value: value.name, default=None)


class _Memory:
    """What is allocated: the bytes alive and saved, an int and multiples of symbolic sizes, and the lives so far."""

    def __init__(self) -> None:
        self._moment = 0
        self._bytes = [0, 0]
        self._terms: tuple[dict[sympy.Expr, int], dict[sympy.Expr, int]] = {}, {}
        self._born: dict[Value, tuple[int, Kind, Size]] = {}
        self._lives: list[Life] = []

    def allocate(self, value: Value, kind: Kind) -> None:
        self._born[value] = self._moment, kind, value.size
        self._add(value.size, 1, kind == "saved")

    def free(self, value: Value) -> None:
        start, kind, size = self._born.pop(value)
        self._add(size, -1, kind == "saved")
        if start < self._moment:  # what is replaced at once was never there
            self._lives.append(Life(value.name, kind, size, start, self._moment))

    def hand_over(self, value: Value, slot: Value) -> None:
        """From here on, a value is known as the input by which backward takes it."""
        self._born[slot] = self._born.pop(value)

    def run(self, kernel: Kernel) -> tuple[Size, Size]:
        """Lets a moment pass in which a kernel runs, its results being allocated; the bytes (alive, saved) at it."""
        if kernel.scratch != 0:
            self._lives.append(Life(kernel.name, "scratch", kernel.scratch, self._moment, self._moment + 1))
        self._moment += 1
        self._add(kernel.scratch, 1)
        level = self.now()
        self._add(kernel.scratch, -1)
        return level

    def now(self) -> tuple[Size, Size]:
        live, saved = (_total(n, terms.items()) for n, terms in zip(self._bytes, self._terms, strict=True))
        return live, saved

    def lives(self) -> tuple[Life, ...]:
        """All lives, those that have not ended included, by their start."""
        staying = [Life(v.name, kind, size, start, None) for v, (start, kind, size) in self._born.items()]
        return tuple(sorted([*self._lives, *staying], key=lambda life: life.start))

    def _add(self, size: Size, times: int, saved: bool = False) -> None:
        for which in (0, 1) if saved else (0,):
            if isinstance(size, int):
                self._bytes[which] += times * size
            else:
                count, term = _split(size)
                self._terms[which][term] = self._terms[which].get(term, 0) + times * count


def _total(number: int, terms: Iterable[tuple[sympy.Expr, int]]) -> Size:
    symbolic = [count * term for term, count in terms if count]
    return sympy.Add(*symbolic, number) if symbolic else number


@lru_cache(maxsize=4096)
def _split(size: sympy.Expr) -> tuple[int, sympy.Expr]:
    count, term = size.as_coeff_Mul()
    return (int(count), term) if count.is_Integer else (1, size)
