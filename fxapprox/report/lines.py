"""A line for each value: what it took under plain torch.compile, what it takes now, and what became of it.

Memory is an account. A line draws all that its value has there, so no byte is in two lines. What no line of the plan
or of a segment has drawn lies in values that only plain torch.compile keeps, or of which a view is saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import sympy
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import Exact
from fxapprox.ir.operators import op_name, table_use
from fxapprox.ir.records import Class, Decision, Held, Stored
from fxapprox.ir.source import module_path
from fxapprox.ir.storage import Fate, Storage
from fxapprox.ir.tensors import is_float, nbytes_expression, storage_of, symbolic_shape, tensor_of
from fxapprox.memory.held import held_by, saved_by
from fxapprox.passes.encode import Parts
from fxapprox.passes.rewrite import Rewrite
from fxapprox.sizes import Size, evaluate


class Account:
    """The memory between forward and backward, and the lines that draw on it.

    Attributes:
        baseline, saved: all of it under plain torch.compile, and now.
    """

    def __init__(self, result: Rewrite, hints: Mapping[str, int]) -> None:
        self._result, self._hints = result, hints
        self._nodes = {node.name: node for node in result.joint.gm.graph.nodes}
        self._made = {node.name: node for node in result.forward.graph.nodes}
        self._values = {a.name: a for a in result.activations}
        self._again = {name: i for i, segment in enumerate(result.segments, 1) for name in segment.recomputed}
        self._unknown = _unknown_readers(result)
        # what is not drawn yet: {node that made the memory: bytes}, and {what is saved: (name of that node, bytes)}
        plain = (self._nodes[name] for name in result.baseline if name in self._nodes)
        saved = saved_by(result.forward, result.joint.num_fwd_outputs)
        self._before = held_by(plain, result.counted_for_plain)
        self._after = {n.name: (base.name, size) for n in saved for base, size in held_by([n], result.counted).items()}
        self.baseline: Size = sum(self._before.values())
        self.saved: Size = sum(dict(self._after.values()).values())

    def lines(self) -> list[Decision]:
        """One for each value that is stored, now or by plain torch.compile; the account is empty afterwards."""
        return [*self._of_the_plan(), *self._of_segments(), *self._of_what_is_left()]

    def _of_the_plan(self) -> Iterator[Decision]:
        # what is stored as it is draws first: codes may be of views of it
        for parts in sorted(self._result.parts, key=lambda p: not isinstance(p.entry.codec, Exact)):
            entry = parts.entry
            if entry.name in self._values and not adapter.is_symbolic_scalar(self._nodes[entry.name]):
                yield self._stored(parts)
                yield from (self._carried(name, entry.name) for name in entry.predicates)

    def _stored(self, parts: Parts) -> Decision:
        """A value that is stored; where it lies in a segment, its code is computed again instead."""
        entry, names = parts.entry, [node.name for node in parts.nodes]
        segment = next((self._again[name] for name in names if name in self._again), None)
        how = Storage.stored(entry.codec, segment)
        return self._line(entry.name, how, self._drawn_before(entry.name), self._drawn_after(names), entry)

    def _carried(self, name: str, carrier: str) -> Decision:
        """A decision that is in the code of another value."""
        return self._line(name, Storage.carried(carrier), self._drawn_before(name), 0)

    def _of_segments(self) -> Iterator[Decision]:
        boundaries = {name for segment in self._result.segments for name in segment.boundary}
        for segment in self._result.segments:
            for held in segment.held:
                yield self._held(held, held.name in boundaries)

    def _held(self, held: Held, boundary: bool) -> Decision:
        """What a segment is computed again from: a value, or a part of one's code."""
        name = self._value_behind(held.name)
        inside = name != held.name and isinstance(held.codec, Exact)
        how = Storage.carried("") if inside else Storage.stored(held.codec)
        how = replace(how, role="boundary" if boundary else "for recomputation")
        return self._line(name, how, self._drawn_before(name), self._drawn_after(held.parts))

    def _of_what_is_left(self) -> Iterator[Decision]:
        makers = (*(node.name for node in self._before), *(base for base, _ in self._after.values()))
        for name in dict.fromkeys(makers):
            if name in self._values:
                yield self._left(name)

    def _left(self, name: str) -> Decision:
        """A value that is not stored, or lies in memory that is kept all the same."""
        before = self._before.get(self._nodes[name], 0)
        after = self._drawn_after([each for each, (base, _) in self._after.items() if base == name])
        fate = Fate.RECOMPUTED if name in self._result.plan.recomputed else Fate.UNNEEDED
        return self._line(name, Storage.stored(Exact()) if after else Storage(fate), before, after)

    def _line(self, name: str, how: Storage, before: Size, after: Size, entry: Stored | None = None) -> Decision:
        value, bytes_after = self._values[name], evaluate(after, self._hints)
        bits = entry.codec.bits if entry is not None and not entry.codec.lossless else None
        return Decision(
            value=name,
            shape=value.shape,
            dtype=str(value.dtype).removeprefix("torch."),
            kind=entry.kind if entry is not None else value.kind,
            reach=value.reach,
            how=how,
            bits=bits,
            bytes_before=evaluate(before, self._hints),
            bytes_after=bytes_after,
            predicates=entry.predicates if entry is not None else (),
            module=value.module,
            source=value.source,
            reason=entry.reason if entry is not None else value.reason,
            sizes=value.sizes,
            expr_before=sympy.sympify(before),
            expr_after=sympy.sympify(after),
            unknown=self._unknown.get(name, ()) if bytes_after and not bits else (),
        )

    def _drawn_before(self, name: str) -> Size:
        """Bytes of the memory in which the value lies; it is drawn once."""
        return self._before.pop(storage_of(self._nodes[name]), 0)

    def _drawn_after(self, names: Iterable[str]) -> Size:
        """Bytes of the memory in which these saved values lie; it is drawn once."""
        bases = dict(self._after[name] for name in names if name in self._after)
        self._after = {name: held for name, held in self._after.items() if held[0] not in bases}
        return sum(bases.values())

    def _value_behind(self, name: str) -> str:
        """The nearest value of the joint graph that a node of forward is computed from: that which a code is of."""
        found = [self._made[name]]
        for node in found:
            if node.name in self._values:
                return node.name
            found += node.all_input_nodes
        raise AssertionError(f"{name} is computed from no value of the joint graph")


def copies_of(result: Rewrite, hints: Mapping[str, int]) -> tuple[Decision, ...]:
    """A line for each input of which plain torch.compile's Inductor saves a channels-last copy."""
    nodes = {node.name: node for node in result.joint.gm.graph.nodes}
    copied = (name for name in result.copied if name not in result.counted)
    return tuple(_copy(nodes[name], name in result.recopied, hints) for name in copied)


def _copy(node: fx.Node, kept: bool, hints: Mapping[str, int]) -> Decision:
    value = tensor_of(node)
    assert value is not None
    size = nbytes_expression(value)
    shape = symbolic_shape(value)
    return Decision(
        value=node.name,
        shape=tuple(evaluate(s, hints) for s in shape),
        dtype=str(value.dtype).removeprefix("torch."),
        kind=Class.FREE,
        reach=None,
        how=Storage(Fate.COPIED if kept else Fate.NOT_COPIED),
        bits=None,
        bytes_before=evaluate(size, hints),
        bytes_after=evaluate(size, hints) if kept else 0,
        predicates=(),
        module=module_path(next(iter(node.users))),
        source="",
        reason="read by convolutions, and saved; its layout is made again in backward" if not kept else
        "read by convolutions, and saved; its sizes are symbolic",
        sizes=shape,
        expr_before=sympy.sympify(size),
        expr_after=sympy.sympify(size) if kept else sympy.Integer(0),
    )  # fmt: skip


def _unknown_readers(result: Rewrite) -> dict[str, tuple[str, ...]]:
    """{a float of forward: the operators of backward that read it and that nobody has described}."""
    found: dict[str, tuple[str, ...]] = {}
    for node in result.joint.gm.graph.nodes:
        runs = node in result.joint.backward or node.name in result.plan.recomputed
        if node.op != "call_function" or not runs or table_use(node, 0) is not None:
            continue
        for source in node.all_input_nodes:
            value = tensor_of(source)
            if source not in result.joint.backward and value is not None and is_float(value.dtype):
                found[source.name] = tuple(dict.fromkeys((*found.get(source.name, ()), op_name(node))))
    return found
