"""Writes a separable part of a graph into it as slices, one after the other.

Sums over the sliced dimension are added up as slices come; rows are written into their place, over a value whose rows
they are made of where nobody else reads it, or into memory of their own. In eager lowering rows are concatenated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.separable import Region, Steps, size_of
from fxapprox.ir.arguments import operands
from fxapprox.ir.operators import is_view, op_name
from fxapprox.ir.records import Slices
from fxapprox.ir.rows import Part
from fxapprox.ir.tensors import flops, numel, storage_of, value_of

ACCUMULATED = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # what sums over slices are kept in


class _Made(NamedTuple):
    """What one slice makes.

    Attributes:
        slices: of each operator's result, or what the slice adds to it.
        read: those of them that are read outside of the slice, in memory.
        products: of sums of products, which can be added to in place: the two matrices.
        waiting: what holds it back until the slices before it are done.
    """

    slices: dict[fx.Node, fx.Node]
    read: dict[fx.Node, fx.Node]
    products: dict[fx.Node, tuple[fx.Node, fx.Node]]
    waiting: list[fx.Node]


@dataclass(frozen=True)
class SliceWriter:
    """Writes one part's slices into its graph.

    Attributes:
        images: values of the graph that Inductor lays out channels-last.
        in_place: whether rows are written into their place as they come.
        ordered: what comes from outside, in one order.
        rows: results of which some rows are there: all of it, as it is so far.
        over: {what comes from outside and is read for the last time: the result whose rows are written over it}.
        known: values of the operators that are written next, the last one first; none: they have to be traced.
        traced: values of those that were.
    """

    graph: fx.Graph
    half: adapter.Half
    region: Region
    mode: Any
    images: Collection[str]
    in_place: bool
    ordered: dict[fx.Node, fx.Node] = field(default_factory=dict)
    rows: dict[fx.Node, fx.Node] = field(default_factory=dict)
    over: dict[fx.Node, fx.Node] = field(default_factory=dict)
    known: list[Any] = field(default_factory=list)
    traced: list[Any] = field(default_factory=list)

    def write(self, length: int, sample: dict[int, list[Any]] | None = None) -> Slices:
        """Writes the part in slices of so many units.

        Args:
            sample: if the first two and the last one are enough, to see what is alive, as those between are alike: the
                values of a slice of so many units, where it was written before.
        """
        region = self.region
        starts: Sequence[int] = range(0, region.units, length)
        if sample is not None and self.in_place:
            starts = [*starts[:2], *starts[2:][-1:]]
        slices = []
        values = {} if sample is None else sample  # traced for a slice of so many units: the next one's are like them
        pieces: dict[fx.Node, list[fx.Node]] = {node: [] for node in region.results}
        place = self._place()
        with self.graph.inserting_before(place):
            for operand in self._taken():
                self._in_order(operand)
            totals = {node: self._zeros(node) for node in pieces if region.inside[node].dim is None}
            if self.in_place:
                self.rows.update((node, self._room(node)) for node in pieces if node not in totals)
            for start in starts:
                stop = min(start + length, region.units)
                self.known[:] = reversed(values.get(stop - start, []))
                self.traced.clear()
                made = self._slice(start, stop, [*totals.values()], pieces.keys())
                slices.append(self._names(made, place))
                self._give(made, start, pieces, totals)
                values.setdefault(stop - start, [*self.traced])
            self.known.clear()
            wholes = {node: self._whole(node, pieces[node], totals) for node in pieces}
        self._replace_by(wholes, place)
        rows = _steps(region.inside[max(region.wide, key=size_of)], length)
        names = tuple(node.name for node in region.inside)
        return Slices(self.half, tuple(slices), names, rows, region.wide_bytes)

    def _taken(self) -> Iterator[fx.Node]:
        """What slices read of other parts of the graph, or whole."""
        for node, taken in self.region.takes.items():
            for (_, operand), part in zip(operands(node), taken.parts, strict=True):
                if part is None or operand not in self.region.inside:
                    yield operand

    def _place(self) -> fx.Node:
        """What the slices are written in front of: what stands behind the part, or reads it first; whatever they read
        is brought before that."""
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        given = (*self.region.results, *self.region.views)
        users = {user for node in given for user in node.users if user not in self.region.inside}
        last = max(self.region.inside.keys() - self.region.remade, key=position.__getitem__)
        place = min(*users, last.next, key=position.__getitem__)
        needed = [n for node in self.region.inside for n in node.all_input_nodes if n not in self.region.inside]
        late: set[fx.Node] = set()
        while needed:
            node = needed.pop()
            if position[node] > position[place] and node not in late:
                late.add(node)
                needed += node.all_input_nodes
        for node in sorted(late, key=position.__getitem__):
            place.prepend(node)
        return place

    def _slice(self, start: int, stop: int, done: Sequence[fx.Node], results: Set[fx.Node]) -> _Made:
        """Runs the part for the units [start : stop], once what the slices before it leave is ``done``."""
        made = _Made({}, {}, {}, [])
        for node, along in self.region.inside.items():

            def part_of(operand: fx.Node, part: Part | None, node: fx.Node = node, along: Steps = along) -> fx.Node:
                if part is None:
                    return self._in_order(operand)
                if operand in made.slices:
                    return made.slices[operand]
                cut = self._cut(operand, along.of(part), start, stop)
                for other in () if made.waiting else done:
                    cut = self._call(adapter.AFTER, (cut, other))
                    made.waiting.append(cut)
                return cut

            target, args, kwargs = self.region.takes[node].call(node, part_of, _steps(along, stop - start))
            if along.dim is None and op_name(node) == "aten.mm":
                made.products[node] = args[0], args[1]
                continue
            if node.target is torch.ops.aten.view.default and not _can_be_viewed(value_of(args[0]), args[1]):
                target = torch.ops.aten.reshape.default  # images lie channels-last
            made.slices[node] = self._call(target, args, kwargs, like=node)
            if along.dim is None:
                made.slices[node] = self._cast(made.slices[node], _kept_in(node))
            if node in results:
                made.read[node] = self._in_memory(made.slices[node], made.read.values())
        return made

    def _names(self, made: _Made, place: fx.Node) -> tuple[str, ...]:
        """Of a slice's operators that can be one function: all but views of what it gets, and views of its results,
        as no two results may share memory."""
        copies = (source for node in made.read.values() for source in node.all_input_nodes)
        inside = {*made.slices.values(), *copies, *made.read.values(), *made.waiting}
        inside -= _first_views(inside)
        kept = {storage_of(node): node for node in made.read.values()}
        for node, (left, right) in made.products.items():
            made.products[node] = self._outside(left, inside, kept), self._outside(right, inside, kept)
        for view in _last_views(inside):
            inside.remove(view)
            place.prepend(view)
        return tuple(node.name for node in sorted(inside))

    def _outside(self, node: fx.Node, inside: Set[fx.Node], kept: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The same, of views one that is made of a result of the function, or of what it gets, at once.

        Args:
            kept: {a value: what is read of its memory}.
        """
        if node not in inside or node in kept.values():
            return node
        if storage_of(node) is node:
            return kept.get(node, node)
        source = self._outside(node.all_input_nodes[0], inside, kept)
        if node.target is adapter.AFTER:
            return source
        made = self.graph.node_copy(node, lambda operand: source)
        made.meta = node.meta.copy()
        return made

    def _give(
        self, made: _Made, start: int, pieces: Mapping[fx.Node, list[fx.Node]], totals: dict[fx.Node, fx.Node]
    ) -> None:
        """Puts what a slice makes where it belongs: rows in their place, or behind those before; sums to the totals."""
        for node, piece in made.read.items():
            if node in self.rows:
                along = self.region.inside[node]
                assert along.dim is not None
                self.rows[node] = adapter.with_part_put(self.rows[node], piece, along.dim, _steps(along, start))
            elif node not in totals:
                pieces[node].append(piece)
            else:  # in memory, so that the slice need not wait
                added = self._call(torch.ops.aten.add.Tensor, (totals[node], piece))
                kept = self._call(adapter.IN_MEMORY, (added,))  # and as the total before: functions read both
                totals[node] = self._call(adapter.IN_ORDER, (kept, list(value_of(totals[node]).stride())))
        for node, (left, right) in made.products.items():
            totals[node] = adapter.with_product_added(totals[node], left, right)

    def _replace_by(self, wholes: Mapping[fx.Node, fx.Node], place: fx.Node) -> None:
        """Has others read the results, and erases the part."""
        inside, views = self.region.inside, self.region.views
        for view in views:
            place.prepend(view)
        for node, whole in wholes.items():
            node.replace_all_uses_with(whole, delete_user_cb=lambda user: user not in inside or user in views)
        for node in reversed(list(inside)):
            if node in wholes:
                adapter.take_place(wholes[node], node)
            elif not node.users:
                self.graph.erase_node(node)

    def _cut(self, operand: fx.Node, along: Steps, start: int, stop: int) -> fx.Node:
        low, high = _steps(along, start), _steps(along, stop)
        assert along.dim is not None
        operand = self.rows[self.over[operand]] if operand in self.over else self._in_order(operand)
        if (low, high) == (0, value_of(operand).shape[along.dim]):
            return operand
        return self._call(torch.ops.aten.slice.Tensor, (operand, along.dim, low, high))

    def _room(self, node: fx.Node) -> fx.Node:
        """Where rows are written: over what is read row by row for the last time, or into memory of their own."""
        for operand in self._taken():
            if operand not in self.over and self._is_like(operand, node) and self._is_last_read(operand, node):
                self.over[operand] = node
                return self._in_order(operand)
        like, image = value_of(node), node.name in self.images
        laid_out = torch.empty_like(like, memory_format=torch.channels_last if image else torch.preserve_format)
        given = {"dtype": like.dtype, "layout": torch.strided, "device": like.device, "pin_memory": False}
        return self._call(torch.ops.aten.empty_strided.default, (list(like.shape), list(laid_out.stride())), given)

    def _is_like(self, operand: fx.Node, node: fx.Node) -> bool:
        one, other = value_of(operand), value_of(node)
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and (operand.name in self.images) == (node.name in self.images)

    def _is_last_read(self, operand: fx.Node, node: fx.Node) -> bool:
        """Whether a value was computed, and is read by the slices alone, each reading the rows that it writes."""
        ordered = self._in_order(operand)
        inside, read = self.region.inside, {operand, ordered, *ordered.all_input_nodes}
        while operand.target is adapter.IN_ORDER or is_view(operand):
            operand = operand.all_input_nodes[0]
            read.add(operand)
        readers = {user for each in read for user in each.users} - read
        return (
            _has_own_memory(operand)
            and readers <= inside.keys()
            and all(
                part is not None and inside[reader].of(part) == inside[node]
                for reader in readers
                for (_, source), part in zip(operands(reader), self.region.takes[reader].parts, strict=True)
                if source in read
            )
        )

    def _in_order(self, operand: fx.Node) -> fx.Node:
        """What comes from outside, as Inductor lays it out: all that call one function have to agree on strides."""
        image = operand.name in self.images
        if operand.target is adapter.IN_ORDER or not (image or operand.op == "call_function"):
            return operand
        if 0 in value_of(operand).stride():  # expanded: there is no such memory
            return operand
        if operand not in self.ordered:
            kept = self._call(adapter.IN_MEMORY, (operand,)) if operand.op == "call_function" else operand
            dense = torch.channels_last if image else torch.preserve_format  # a part of a value is copied out of it
            like = torch.empty_like(value_of(operand), memory_format=dense)
            self.ordered[operand] = self._call(adapter.IN_ORDER, (kept, list(like.stride())))
        return self.ordered[operand]

    def _zeros(self, node: fx.Node) -> fx.Node:
        """What slices are added to."""
        like = value_of(node)
        given = {"dtype": _kept_in(node), "layout": torch.strided, "device": like.device, "pin_memory": False}
        return self._call(torch.ops.aten.full.default, (list(like.shape), 0), given)

    def _in_memory(self, made: fx.Node, others: Collection[fx.Node]) -> fx.Node:
        """A result of a slice, written before the next one runs: Inductor would keep what it is computed from.

        Each has memory of its own: of a view of a part, the rest would stay as long.

        Args:
            others: the results before it.
        """
        owner = storage_of(made)
        if numel(value_of(owner)) != numel(value_of(made)) or owner in map(storage_of, others):
            made = self._call(torch.ops.aten.clone.default, (made,), like=made)
        return self._call(adapter.IN_MEMORY, (made,), like=made)

    def _cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        if value_of(node).dtype == dtype:
            return node
        return self._call(torch.ops.prims.convert_element_type.default, (node, dtype))

    def _whole(self, node: fx.Node, pieces: list[fx.Node], totals: dict[fx.Node, fx.Node]) -> fx.Node:
        """A result of the part, from its slices; laid out as it was, as views of it may only be had so."""
        dim, strides = self.region.inside[node].dim, value_of(node).stride()
        if node in self.rows:
            return self.rows[node]
        if dim is None:
            whole = self._cast(totals[node], value_of(node).dtype)
            return (
                whole if value_of(whole).stride() == strides else self._call(adapter.IN_ORDER, (whole, list(strides)))
            )
        whole = self._call(torch.ops.aten.cat.default, (pieces, dim))
        if value_of(whole).stride() == strides:
            return whole
        self.graph.erase_node(whole)
        order = sorted(range(len(strides)), key=lambda d: (-strides[d], d))
        pieces = [self._call(torch.ops.aten.permute.default, (piece, order)) for piece in pieces]
        whole = self._call(torch.ops.aten.cat.default, (pieces, order.index(dim)))
        return self._call(torch.ops.aten.permute.default, (whole, [order.index(d) for d in range(len(order))]))

    def _call(
        self, target: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None,
        like: fx.Node | None = None,
    ) -> fx.Node:  # fmt: skip
        made = self.graph.call_function(target, tuple(args), kwargs or {})
        made.meta = {} if like is None else like.meta.copy()
        if self.known:
            made.meta["val"] = self.known.pop()
            return made
        given = fx.map_arg((made.args, made.kwargs), lambda n: n.meta["val"])
        with self.mode:
            made.meta["val"] = target(*given[0], **given[1])
        self.traced.append(made.meta["val"])
        return made


def _first_views(nodes: Set[fx.Node]) -> set[fx.Node]:
    """Views of what a slice gets, and need not wait for."""
    found = set[fx.Node]()
    for node in sorted(nodes):
        shows = is_view(node) and node.target not in (adapter.IN_MEMORY, adapter.AFTER)
        if shows and (nodes - found).isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _last_views(nodes: Set[fx.Node]) -> list[fx.Node]:
    """Views at the end of a slice, of which what others read is one function's result: in their order."""
    found = set[fx.Node]()
    for node in sorted(nodes, reverse=True):
        if is_view(node) and node.target is not adapter.IN_MEMORY and (nodes - found).isdisjoint(node.users):
            found.add(node)
    return sorted(found)


def _kept_in(node: fx.Node) -> torch.dtype:
    """The type in which a sum over slices is added up."""
    return ACCUMULATED.get(value_of(node).dtype, value_of(node).dtype)


def _can_be_viewed(value: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether it can have this shape without a copy."""
    try:
        torch.empty_strided(value.shape, value.stride(), device="meta").view(*shape)
    except (RuntimeError, ValueError):
        return False
    return True


def _steps(along: Steps, units: int) -> int:
    return int(along.per * units)


def _has_own_memory(node: fx.Node) -> bool:
    """Whether a value is surely none of its operands: Inductor takes out copies, sums and products with constants."""
    if node.op != "call_function":
        return False
    return bool(flops(node)) or adapter.written_to(node) is not None or sum(map(_varies, node.all_input_nodes)) > 1


def _varies(node: fx.Node) -> bool:
    """Whether it depends on any input."""
    stack, seen = [node], {node}
    while stack:
        node = stack.pop()
        if node.op == "placeholder":
            return True
        stack += [source for source in node.all_input_nodes if source not in seen]
        seen.update(node.all_input_nodes)
    return False
