"""Puts the codecs into the two graphs: encode at the end of forward, decode in front of the first use in backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import ALONE, Carrier, Codec, Context, Exact, Identity, Like, Predicate, encoded
from fxapprox.errors import FxApproxError, InvalidPlan, UnsupportedGraph
from fxapprox.ir.arguments import argument
from fxapprox.ir.inline import Inliner
from fxapprox.ir.joint import erase_unused, nodes_between
from fxapprox.ir.operator_table import Kind
from fxapprox.ir.operators import kind_of, op_name, operator_of
from fxapprox.ir.records import Affine, Moments, Plan, Spliced, Stored
from fxapprox.ir.source import source_line
from fxapprox.ir.tensors import is_float, memory_order, storage_of, symbolic_shape, tensor_of


@dataclass(frozen=True)
class Parts:
    """What is really stored for one entry of the plan.

    Attributes:
        entry: of the plan.
        nodes: what forward returns for it.
        inputs: names of the inputs by which backward takes it, in the same order.
        spliced: its codec's nodes; None for a value that is stored as it is.
        decoded: names of the approximate values that backward decodes.
    """

    entry: Stored
    nodes: tuple[fx.Node, ...]
    inputs: tuple[str, ...] = ()
    spliced: Spliced | None = None
    decoded: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[fx.Node, ...]:
        """The nodes that its codec makes; statistics of forward's own are not among them."""
        made = set(self.spliced.encode) if self.spliced is not None else ()
        return tuple(node for node in self.nodes if node.name in made)


def encode(
    forward: fx.GraphModule, backward: fx.GraphModule, plan: Plan, *, num_fwd_outputs: int, images: Collection[str] = ()
) -> tuple[Parts, ...]:
    """Replaces each saved value by the parts of its code, and its reads in backward by the decoded value.

    Args:
        num_fwd_outputs: how many of forward's outputs are the user's.
        images: names of the values that will lie channels-last in memory, whatever the graphs' strides say.

    Requires: the two graphs that ``partition`` made from this plan.
    Ensures: forward's own outputs are untouched; the saved values keep AOTAutograd's order; no decision in backward
        is taken on a decoded value (the runner verifies that).
    Changes numerics: yes, of backward; not with codecs that lose nothing.

    Raises:
        UnsupportedGraph: a codec failed, or two saved values would share memory.
    """
    outputs = _Outputs(forward, num_fwd_outputs)
    inputs = {n.name: n for n in backward.graph.nodes if n.op == "placeholder"}
    produced = {n.name: n for n in forward.graph.nodes}
    writers = Inliner(forward), Inliner(backward)
    parts = []
    for entry in plan.stored:
        if entry.name not in inputs and not any(p in inputs for p in entry.predicates):
            continue  # backward turned out not to read it
        if type(entry.codec) is Exact or entry.name not in produced:
            parts.append(Parts(entry, (produced[entry.name],)) if entry.name in produced else Parts(entry, ()))
            continue
        written = replace(entry, codec=entry.codec.for_channels_last()) if entry.name in images else entry
        try:
            made = _encode_one(written, writers, backward, produced, inputs, outputs)
        except (FxApproxError, Warning):
            raise
        except Exception as error:
            why = f"{entry.codec} raised {type(error).__name__}: {error}"
            raise UnsupportedGraph("encode", why, node=entry.name, values=(entry.name,)) from error
        parts.append(replace(made, entry=entry))
    outputs.write()
    for graph in (forward, backward):
        erase_unused(graph.graph)
    outputs.verify_apart()
    left = {node.name for graph in (forward, backward) for node in graph.graph.nodes}
    return tuple(replace(made, spliced=_left_of(made.spliced, left)) for made in parts)


def _left_of(spliced: Spliced | None, left: set[str]) -> Spliced | None:
    """The nodes that are still there: a name that has been erased may be given again."""
    if spliced is None:
        return None
    encode, decode = (tuple(n for n in names if n in left) for names in (spliced.encode, spliced.decode))
    return replace(spliced, encode=encode, decode=decode)


class _Outputs:
    """The forward graph's output list: the user's outputs first, then what is saved; that may be replaced."""

    def __init__(self, forward: fx.GraphModule, num_fwd_outputs: int) -> None:
        self.node = next(iter(forward.graph.find_nodes(op="output")))
        values: list[Any] = list(self.node.args[0])  # type: ignore[arg-type]
        described = list(zip(values, self.node.meta.get("desc", [None] * len(values)), strict=True))
        self._outputs = described[:num_fwd_outputs]
        # what is saved in place of each saved value, with the value's description
        self._saved = {value: ([value], about) for value, about in described[num_fwd_outputs:]}
        self._names = set(self._saved)

    def saves(self, node: fx.Node) -> bool:
        """Whether the node stands among the saved values; its place among the user's outputs does not count."""
        return node in self._names

    def replace(self, old: fx.Node, new: Sequence[fx.Node]) -> None:
        self._saved[old][0][:] = new
        self._names.discard(old)
        self._names.update(new)

    def verify_apart(self) -> None:
        """No two saved tensors share memory: backward may write over each after its last use.

        It never writes into what the user has: two outputs that are parts of one tensor may both be saved.
        """
        bases: dict[fx.Node, fx.Node] = {}
        users = {storage_of(value) for value, _ in self._outputs if isinstance(value, fx.Node)}
        for node in self._names:
            if tensor_of(node) is not None and node.op == "call_function":
                base = storage_of(node)
                if base not in users and bases.setdefault(base, node) is not node:
                    why = f"{node.name!r} and {bases[base].name!r} share memory, and both would be saved"
                    raise UnsupportedGraph("encode", why, node=node.name, source=source_line(node))

    def write(self) -> None:
        saved = [(node, about) for nodes, about in self._saved.values() for node in nodes]
        values = [value for value, _ in (*self._outputs, *saved)]
        self.node.args = (tuple(values),)
        self.node.meta["desc"] = [about for _, about in (*self._outputs, *saved)]
        traces = [v.meta.get("stack_trace") if isinstance(v, fx.Node) else None for v in values]
        self.node.meta["output_stack_traces"] = traces
        self.node.meta.pop("val", None)


def _encode_one(
    entry: Stored,
    writers: tuple[Inliner, Inliner],
    backward: fx.GraphModule,
    produced: dict[str, fx.Node],
    inputs: dict[str, fx.Node],
    outputs: _Outputs,
) -> Parts:
    """Rewrites one entry."""
    value = produced[entry.name]
    like = Like.of(fake, memory_order(fake)) if (fake := tensor_of(value)) is not None else None
    if like is None:
        raise InvalidPlan(f"{entry.name!r} cannot be encoded: it is not a tensor")
    predicates = [produced[name] for name in entry.predicates]
    context = _read_by(entry, produced)
    args = [value, *context.nodes]
    key = (entry.codec, like.key, len(context.nodes), context.signature)
    written = writers[0].inline(_encoder(entry, context), args, before=after(args), key=("encode", key))

    read = [n for n in (value, *predicates) if n.name in inputs]
    slots = [inputs[n.name] for n in read]
    shapes = [part.meta["val"].shape for part in written]
    signature = tuple(symbolic_shape(part.meta["val"]) for part in written)
    parts = tuple(_behind_reshapes(part) for part in written)  # statistics: the tensor itself, not a view of it
    # the parts take the place of the first saved value, and the others' places go; a part that is saved already
    # (a statistic that backward reads as well) is not saved again; the value itself may be one (a cast to its own type)
    fresh = [part for part in dict.fromkeys(parts) if part in read or not outputs.saves(part)]
    name_parts(entry.name, [part for part in fresh if produced.get(part.name) is not part])
    made = _new_placeholders(backward, fresh, before=slots[0])
    inputs.update((part.name, node) for part, node in zip(fresh, made, strict=True))
    new_inputs = [inputs[part.name] for part in parts]
    outputs.replace(read[0], fresh)
    for node in read[1:]:
        outputs.replace(node, ())
    first_use = min(user for slot in slots for user in slot.users)
    decoder = _decoder(entry, like, context, shapes)
    decoded = writers[1].inline(decoder, new_inputs, before=first_use, key=("decode", key, signature))
    results = dict(zip([entry.name, *entry.predicates], decoded, strict=True))
    approximate = []
    for node, slot in zip(read, slots, strict=True):
        result = results[node.name]
        slot.replace_all_uses_with(result)
        backward.graph.erase_node(slot)
        if node is value and _loses(entry) and is_float(result.meta["val"].dtype):
            approximate.append(result.name)
    names = (
        tuple(n.name for n in nodes) for nodes in (nodes_between(args, written), nodes_between(new_inputs, decoded))
    )
    spliced = Spliced(entry.name, entry.codec, *names)
    return Parts(entry, parts, tuple(node.name for node in new_inputs), spliced, tuple(approximate))


def _behind_reshapes(node: fx.Node) -> fx.Node:
    """The tensor of which the node is a reshape: backward gets the node back from its shape alone.

    Not so behind other views: codes that are packed in memory's order are a permutation of what is in memory.
    """
    while _is_reshape(node):
        node = argument(node, 0)
    return node


def _is_reshape(node: fx.Node) -> bool:
    in_order = op_name(node) == "aten.permute" and list(dims := argument(node, "dims")) == sorted(dims)
    return kind_of(node) is Kind.IN_ORDER or in_order


class _Alone:
    """What a codec reads in forward besides the value; most read nothing."""

    nodes: tuple[fx.Node, ...] = ()
    signature: Hashable = None  # what the trace depends on besides the codec and shapes

    def context(self, x: Tensor, values: Sequence[Tensor]) -> Context:
        """What the codec is given; ``values`` are those of ``nodes``. Runs under the trace, as does decode."""
        return ALONE

    def decode(self, codec: Codec, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, ...]:
        """The value, then the entry's predicates."""
        return (codec.decode(parts, like),)


class _Standardized(_Alone):
    """The statistics that standardize the value: rstd, and the mean unless the value is centred."""

    def __init__(self, moments: Moments, produced: dict[str, fx.Node]) -> None:
        self.nodes = tuple(produced[name] for name in (moments.rstd, moments.mean) if name)

    def context(self, x: Tensor, values: Sequence[Tensor]) -> Context:
        rstd, *mean = values
        return Context(mean=mean[0] if mean else None, rstd=rstd)


def _read_by(entry: Stored, produced: dict[str, fx.Node]) -> _Alone:
    if entry.affine is not None:
        return _Decision.of(entry, entry.affine, produced)
    if entry.moments is not None:
        return _Standardized(entry.moments, produced)
    return _Alone()


@dataclass(frozen=True)
class _Decision(_Alone):
    """A predicate, the steps' coefficients, the statistics.

    ``masks`` are like the predicates: their order in memory, on which backward's sums depend, and its speed; and their
    shape, which may be another than the value's.
    """

    affine: Affine
    upper_is_true: tuple[bool, ...]
    masks: tuple[Like, ...]
    predicate: fx.Node
    coefficients: dict[str, fx.Node]

    @classmethod
    def of(cls, entry: Stored, affine: Affine, produced: dict[str, fx.Node]) -> _Decision:
        names = [c for _, c in _own_steps(affine) if isinstance(c, str)]
        names += [n for n in (affine.mean, affine.rstd) if n]
        sides = tuple(_upper_is_true(produced[name]) for name in entry.predicates)
        taken = (tensor_of(produced[name]) for name in entry.predicates)
        masks = tuple(Like.of(mask, memory_order(mask)) for mask in taken if mask is not None)
        return cls(affine, sides, masks, produced[entry.carried[0]], {name: produced[name] for name in names})

    @property
    def nodes(self) -> tuple[fx.Node, ...]:  # type: ignore[override]
        return (self.predicate, *self.coefficients.values())

    @property
    def signature(self) -> Hashable:  # type: ignore[override]
        """Coefficients by their order, not by their names."""
        order = list(self.coefficients)
        steps = tuple((op, order.index(c) if isinstance(c, str) else (c,)) for op, c in _own_steps(self.affine))
        masks = tuple(mask.key for mask in self.masks)
        return steps, self.affine.threshold, self.affine.mean is None, self.upper_is_true, masks

    def decode(self, codec: Codec, parts: tuple[Tensor, ...], like: Like) -> tuple[Tensor, ...]:
        assert isinstance(codec, Carrier)
        value, upper = codec.decode_with(parts, like)
        taken = (upper if side else ~upper for side in self.upper_is_true)
        return value, *(
            mask.restride(_reshaped(side, mask.shape)) for side, mask in zip(taken, self.masks, strict=True)
        )

    def context(self, x: Tensor, values: Sequence[Tensor]) -> Context:
        taken = _reshaped(values[0], x.shape)
        named = dict(zip(self.coefficients, values[1:], strict=True))
        if taken.dtype.is_floating_point:  # a rectifier whose mask backward does not read
            upper = taken > 0
        else:
            upper = taken if self.upper_is_true[0] else ~taken
        if not self.affine.steps and self.affine.threshold == 0:
            return Context(Predicate(upper))
        scale, shift = compose(_own_steps(self.affine), named, x)
        decision = Predicate(upper, scale, shift - self.affine.threshold if self.affine.threshold else shift)
        return Context(decision, named.get(self.affine.mean or ""), named.get(self.affine.rstd or ""))


def _reshaped(decision: Tensor, shape: Sequence[Any]) -> Tensor:
    """The decision in another shape; no operator for nothing where it has that one."""
    same = symbolic_shape(decision) == tuple(map(adapter.expression, shape))
    return decision if same else decision.reshape(shape)


def _own_steps(affine: Affine) -> tuple[tuple[str, str | float], ...]:
    """The steps after standardization, if the value's own statistics do that."""
    return affine.steps[2:] if affine.mean else affine.steps


def compose(steps: Sequence[tuple[str, str | float]], named: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift) of z = scale * x + shift, from the steps that lead from x to z."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale: Any = 1.0
    shift: Any = 0.0  # numbers until a coefficient makes them tensors: no operations for what is not there
    for step, coefficient in steps:
        c: Any = named[coefficient].to(dtype) if isinstance(coefficient, str) else coefficient
        if step == "add":
            shift = c if _is_number(shift, 0) else shift + c
        elif step == "sub":
            shift = -c if _is_number(shift, 0) else shift - c
        elif step == "rsub":
            scale, shift = -scale, c - shift
        elif step == "mul":
            scale, shift = _times(scale, c), _times(shift, c)
        elif step == "div":
            scale, shift = scale / c, shift / c
        else:
            scale, shift = -scale, -shift
    scale, shift = (
        value if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=x.device)
        for value in (scale, shift)
    )
    return scale, shift


def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, float) and value == number


def _times(value: Any, c: Any) -> Any:
    return c if _is_number(value, 1) else value if _is_number(value, 0) else value * c


def _upper_is_true(predicate: fx.Node) -> bool:
    comparison = operator_of(predicate).compares
    return comparison is not None and comparison.above


def _encoder(entry: Stored, context: _Alone) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, *values: encoded(entry.codec, x, context.context(x, values))


def _decoder(
    entry: Stored, like: Like, context: _Alone, shapes: Sequence[Sequence[int]]
) -> Callable[..., tuple[Tensor, ...]]:
    def run(*saved: Tensor) -> tuple[Tensor, ...]:
        parts = tuple(part.reshape(shape) for part, shape in zip(saved, shapes, strict=True))
        return context.decode(entry.codec, parts, like)

    return run


def _loses(entry: Stored) -> bool:
    return not isinstance(entry.codec, (Exact, Identity))


def name_parts(value: str, made: Sequence[fx.Node]) -> None:
    """Names what a codec has made of a value after it. Backward takes it by the same name: torch goes by names where it
    traces hooks on saved tensors into both graphs."""
    for i, part in enumerate(made):
        adapter.name_part(part, value, i)


def _new_placeholders(backward: fx.GraphModule, parts: Sequence[fx.Node], *, before: fx.Node) -> list[fx.Node]:
    """Backward's inputs for parts, under their names in forward."""
    made = []
    with backward.graph.inserting_before(before):
        for part in parts:
            node = backward.graph.placeholder(part.name)
            node.meta["val"] = part.meta["val"]
            made.append(node)
    return made


def after(nodes: Sequence[fx.Node]) -> fx.Node:
    """The first place in the graph where all of these are at hand."""
    node = max(nodes).next
    while node.op == "placeholder":
        node = node.next
    return node
