"""What the passes hand each other: frozen records about values, and the plan for storing them.

``classify`` describes every forward value that backward could ask for as an ``Activation``; ``plan`` reads nothing
else, and answers with a ``Plan``: which of them are stored, and each in which codec. Everything that a report
shows comes from the same records.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import sympy
import torch

from fxapprox.codecs import Codec
from fxapprox.codecs.choose import Class
from fxapprox.ir.storage import Storage
from fxapprox.sizes import Size, evaluate


class Use(enum.IntEnum):
    """How a result depends on one operand, ordered: a chain of uses is as strict as its strictest."""

    SHAPE = 0  # the elements are not read
    LINEAR = 1
    SMOOTH = 2
    ATTENTION = 3
    SOFTMAX = 4
    SENSITIVE = 5
    DECISION = 6


class Reach(enum.Enum):
    """Where an error in a stored value ends: in one parameter's gradient, or in earlier layers' as well."""

    TERMINAL = "terminal"
    CHAIN = "chain"


CLASS_OF_USE = {
    Use.SHAPE: Class.LINEAR,  # where nothing can stand in for it, any copy will do
    Use.LINEAR: Class.LINEAR,
    Use.SMOOTH: Class.SMOOTH,
    Use.ATTENTION: Class.ATTENTION,
    Use.SOFTMAX: Class.SOFTMAX,
    Use.SENSITIVE: Class.SENSITIVE,
    Use.DECISION: Class.SENSITIVE,
}


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of a forward operator: what recomputing the operator asks of it."""

    name: str
    use: Use

    @property
    def exact(self) -> bool:
        """Whether an approximate operand will not do."""
        return self.use >= Use.SENSITIVE


@dataclass(frozen=True, slots=True)
class Affine:
    """A predicate's operand as a per-channel affine function of a stored value: z = (...((x op c1) op c2)...).

    Attributes:
        root: the value x that one code can store together with the predicate.
        steps: (operator, coefficient) from x to z; a coefficient is a node name or a number.
        threshold: the predicate compares z with this number.
        upper_is_true: whether the predicate is true where z lies above the threshold.
        mean, rstd: names of the exact statistics that standardize x, if its normalization has them; else None.
        channel: the shape that all coefficients are broadcast to; None if they are numbers.
        ties_above: whether z at the threshold itself lies above it (z >= threshold and z < threshold say so); None for
            a rectifier, which is the same either way.
    """

    root: str
    steps: tuple[tuple[Literal["add", "sub", "rsub", "mul", "div", "neg"], str | float], ...]
    threshold: float
    upper_is_true: bool
    mean: str | None = None
    rstd: str | None = None
    channel: tuple[Size, ...] | None = None
    ties_above: bool | None = None

    def agrees_with(self, other: Affine) -> bool:
        """Whether one code of the root can carry both decisions."""
        same = (self.steps, self.threshold) == (other.steps, other.threshold)
        return same and (None in (self.ties_above, other.ties_above) or self.ties_above == other.ties_above)


@dataclass(frozen=True, slots=True)
class Clamp:
    """How a clamp comes back from an approximate operand without deciding again: where(predicate, operand, limit).

    Attributes:
        operand: what is clamped.
        predicate: a decision that backward reads anyway: on which side of the limit the operand lay.
        inside: what the predicate is where the operand passes unchanged; the limit stands elsewhere.
        limit: the clamp's.
    """

    operand: str
    predicate: str
    inside: bool
    limit: float


@dataclass(frozen=True, slots=True)
class Moments:
    """The exact statistics by which a normalization over the batch standardizes a value: (x - mean) * rstd.

    Attributes:
        mean, rstd: node names; no mean where the value is centred already.
    """

    mean: str | None
    rstd: str


@dataclass(frozen=True, slots=True)
class Activation:
    """One forward value of the joint graph.

    Attributes:
        name: node name in the joint graph.
        op: the operator that makes it, e.g. "aten.convolution".
        shape, dtype, device: of the tensor; sizes that are symbolic stand here as their hints.
        sizes: the shape with symbolic sizes as expressions.
        nbytes: bytes of the value itself, at the hints.
        kind: its ``Class``, from every way in which backward can read it.
        reach: see ``Reach``; None if backward does not read it.
        reason: why it has that class, in words.
        predicates: names of the predicates computed from it that backward needs.
        module, source: path of the module that made it, and the user's source line.
        demand: what backward's own operators ask of it: None (nothing), or the strictest ``Use``.
        operands: what recomputing it would read.
        recomputable: whether backward may recompute it, from approximate operands too; ``pinned`` says why not.
        rerunnable: whether backward may recompute it from exact operands.
        unrounded: whether its operator gives the same bits for the same operands, however it is fused with others.
        storable: False for values that cannot be saved (tuples), and for views that show all of another value.
        reshaped: such a view: a copy or a code of it can be saved, but one of the other value is as good.
        partial: it takes less than the memory it lies in: a view of a part of another value, or a value with gaps
            between its elements; it is stored as a copy, not to keep the whole alive.
        free: alive during backward anyway.
        inside: a region in the user's ``torch.utils.checkpoint`` computes it: stored with ``checkpoint_bits`` alone.
        entering: such a region reads it, but does not compute it: it is stored in ``checkpoint_bits``.
        approximable: whether an approximate copy is of any use and safe; else it is exact or recomputed.
        kept: why it is stored as it is if it is stored at all ("too small" or not dense); "" if it can be encoded.
        span: the range (low, high) that an integer is known to lie in, or None.
        nonnegative: whether no element can be below zero.
        weights: whether it is the output of a softmax: few large elements, and many near zero.
        for_softmax: whether it has its class for the sake of a softmax's output: it is one, or one is made of it.
        saturates: whether it ends at two limits, as tanh does, near which its derivative vanishes.
        embedded: for a predicate or a rectifier: how a code of another value can carry its decision.
        clamp: for a clamp: how it can be run again on an approximate operand.
        ceiling: for an exponential that is read only where its operand is bounded: a little more than that is at most.
        moments: for a value that a normalization over the batch standardizes: see ``Moments``.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    sizes: tuple[Size, ...]
    dtype: torch.dtype | None
    device: str
    nbytes: int
    kind: Class
    reach: Reach | None
    reason: str
    predicates: tuple[str, ...]
    module: str
    source: str
    demand: Use | None
    operands: tuple[Operand, ...]
    recomputable: bool
    rerunnable: bool
    unrounded: bool
    pinned: str
    storable: bool
    reshaped: bool
    free: bool
    approximable: bool
    kept: str
    inside: bool = False
    entering: bool = False
    partial: bool = False
    span: tuple[int, int] | None = None
    nonnegative: bool = False
    weights: bool = False
    for_softmax: bool = False
    saturates: bool = False
    embedded: Affine | None = None
    clamp: Clamp | None = None
    ceiling: float | None = None
    moments: Moments | None = None

    @property
    def is_float(self) -> bool:
        """Whether its elements are floating point numbers, or complex."""
        return self.dtype is not None and (self.dtype.is_floating_point or self.dtype.is_complex)


@dataclass(frozen=True, slots=True)
class Stored:
    """One entry of the plan: a value (and the predicates its code carries), stored in a codec.

    Attributes:
        name: the value.
        codec: how it is stored.
        affine: for a code that carries a predicate: where the predicate's threshold lies.
        moments: for a code whose range comes from statistics: which.
        carried: names of the decisions that the code carries: predicates, and rectifiers run again from it.
        predicates: those of them that are masks, and cross to backward only inside this code.
        kind: class of the value, given everything that is recomputed from it.
        nbytes: bytes stored; an expression where sizes are symbolic.
        reason: why it is stored, and why so.
    """

    name: str
    codec: Codec
    kind: Class
    nbytes: Size
    reason: str
    affine: Affine | None = None
    moments: Moments | None = None
    carried: tuple[str, ...] = ()
    predicates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Slices:
    """A part of a graph that runs slice by slice.

    Attributes:
        half: of the training step.
        names: of each slice's operators, without those that cut its operands or put its results together.
        operators: of the graph that are run so, by name.
        rows: of the widest value in a slice.
        wide_bytes: of the values that are never whole, if they were.
    """

    half: Literal["forward", "backward"]
    names: tuple[tuple[str, ...], ...]
    operators: tuple[str, ...]
    rows: int
    wide_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Which forward values are stored for backward, and how; everything else backward reads is recomputed.

    ``clamps`` are those recomputed values that are clamps of approximate operands, ``ceilings`` those that are
    exponentials of such, read only where the operand is at most this.
    """

    stored: tuple[Stored, ...]
    recomputed: tuple[str, ...]
    clamps: tuple[tuple[str, Clamp], ...] = ()
    ceilings: tuple[tuple[str, float], ...] = ()

    @property
    def saved_names(self) -> tuple[str, ...]:
        """Every value that crosses from forward to backward, predicates in codes included."""
        names = dict.fromkeys(name for entry in self.stored for name in (entry.name, *entry.predicates))
        return tuple(names)


@dataclass(frozen=True, slots=True)
class Spliced:
    """Where the operators of one codec stand in the two graphs; a value that is decoded again has one more of these.

    Attributes:
        value: name of the value in forward.
        codec: of the operators.
        encode: names of the nodes in forward that encode it.
        decode: names of the nodes in backward that decode it, and the decisions in its code.
    """

    value: str
    codec: Codec
    encode: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A value that is saved so that others can be computed again.

    Attributes:
        name: of the value in forward; one inside of a codec is not in the joint graph.
        codec: how.
        parts: names of what forward returns for it.
    """

    name: str
    codec: Codec
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of forward that backward computes again.

    Attributes:
        boundary: names of the values that it is computed from, besides inputs; the segments before it may share them.
        recomputed: names of the saved values, codes included, that are not saved but computed again.
        operators: how many operators are run again for them.
        flops: floating point operations of the products among them.
        held: what is saved for it beyond what the plan stores; a value that several segments need stands in one.
        again: (node of backward, node of forward) for each operator that is run again; codecs' among them.
        spliced: codecs of what is saved for it, and of what it decodes.
    """

    boundary: tuple[str, ...]
    recomputed: tuple[str, ...]
    operators: int
    flops: int
    held: tuple[Held, ...] = ()
    again: tuple[tuple[str, str], ...] = ()
    spliced: tuple[Spliced, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of a report: what happens to one value that backward reads.

    Attributes:
        value: node name in the joint graph.
        shape, dtype: of the value; symbolic sizes by their hints.
        kind, reach: see ``Class`` and ``Reach``.
        how: how it is kept; see ``Storage``.
        bits: per element of a code with loss, scales aside; None for what is exact, a decision, or not stored.
        bytes_before, bytes_after: of the value itself, and of what is stored for it.
        predicates: predicates that its code carries.
        module, source: path of the module that made it, and the user's source line.
        reason: why.
        sizes, expr_before, expr_after: shape and bytes as expressions of the symbolic sizes.
        unknown: operators that nobody has described and that read it, for which it is stored exactly.
    """

    value: str
    shape: tuple[int, ...]
    dtype: str
    kind: Class
    reach: Reach | None
    how: Storage
    bits: int | None
    bytes_before: int
    bytes_after: int
    predicates: tuple[str, ...]
    module: str
    source: str
    reason: str
    sizes: tuple[Size, ...]
    expr_before: sympy.Expr
    expr_after: sympy.Expr
    unknown: tuple[str, ...] = ()

    @property
    def storage(self) -> str:
        """How it is kept, in words: "4-bit threshold", "exact", "1-bit mask", "free"."""
        return self.how.text

    def at(self, values: Mapping[str, int]) -> Decision:
        """The decision with shape and bytes for these sizes, given by the symbols' names."""
        return replace(
            self,
            shape=tuple(evaluate(size, values) for size in self.sizes),
            bytes_before=evaluate(self.expr_before, values),
            bytes_after=evaluate(self.expr_after, values),
        )
