"""Runs wide parts of a graph slice by slice, so that what lives only inside them is as large as one slice.

The logits of a language model, their softmax and their gradient are the widest values of a step; once ``advance`` has
brought together what reads them, nothing outside does. Such a part is run for a slice of its rows at a time: rows are
written one behind the other, gradients of weights are added up in place. No operator runs twice, and no row's result
depends on which slice it is in, but for the order in which a library adds.

Slices stand in the graph as they run, one after the other. For Inductor each becomes a call of one function
(``outline.py``), which it compiles once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.separable import Region, Sliced, regions
from fxapprox.ir.joint import erase_unused
from fxapprox.ir.operators import is_view, op_name
from fxapprox.ir.records import Slices
from fxapprox.ir.rows import Part
from fxapprox.ir.tensors import flops, nbytes, tensor_of
from fxapprox.memory.timeline import timeline

SMALLEST = 2**23  # bytes of the product around which a part is sliced: below, calls cost more than is saved
SLICE = 2**22  # bytes of that product in a slice, at least
WORTH = 0.9  # of the predicted peak, at most, is left
FEWEST_ROWS = 64  # a library's products are slow with fewer
MOST = 32  # slices
ACCUMULATED = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # what sums over slices are kept in


def run_in_slices(
    forward: fx.GraphModule, backward: fx.GraphModule, count: int | None, *, num_fwd_outputs: int, lowering: str
) -> tuple[fx.GraphModule, tuple[Slices, ...]]:
    """Runs the separable parts around wide products of a forward graph slice by slice.

    Requires: two graphs that belong together. A part whose sizes are symbolic is left whole.
    Ensures: the graphs given are untouched; inputs, outputs and their names are the same; each operator runs once for
        each row.
    Changes numerics: sums over rows are added up slice by slice (of 16-bit floats in float32); products may round
        otherwise with fewer rows.

    Args:
        count: how many slices; None: as many as make a slice of the widest value small, if that takes a tenth off the
            predicted peak.

    Returns: (the forward graph, the parts); the graph given, where there are none.
    """
    sliced = adapter.copy_module(forward)
    found = slice_wide(sliced, count)
    if not found:
        return forward, ()

    def peak(half: fx.GraphModule) -> int:
        return timeline(half, backward, num_fwd_outputs=num_fwd_outputs, lowering=lowering).peak({})

    if count is None and peak(sliced) > WORTH * peak(forward):
        return forward, ()
    sliced.recompile()
    return sliced, found


def slice_wide(gm: fx.GraphModule, count: int | None = None) -> tuple[Slices, ...]:
    """As ``run_in_slices``, whatever comes of it. Mutates ``gm``; returns the parts."""
    mode = adapter.fake_mode_of(gm)
    if mode is None:
        return ()
    found = []
    widest = max(
        (nbytes(_of(node)) for node in gm.graph.nodes if flops(node) and tensor_of(node) is not None), default=0
    )
    for region in regions(gm.graph, SMALLEST if count is None else widest // 4):
        length = _length(region, count)
        if length < region.units and not any(adapter.mutates(node) for node in region.inside):
            found.append(_Writer(gm.graph, region, mode).write(length))
    erase_unused(gm.graph)
    return tuple(found)


def _length(region: Region, count: int | None) -> int:
    """Units in a slice; all of them if it is not worth cutting."""
    if count is None:
        widest = max(nbytes(_of(node)) for node in region.wide)
        count = min(MOST, widest // SLICE, region.units // FEWEST_ROWS)
    units = math.ceil(region.units / max(1, count))
    return min(region.units, math.ceil(units / region.step) * region.step)


class _Made(NamedTuple):
    """What one slice makes.

    Attributes:
        slices: of each operator's result, or what the slice adds to it.
        products: of sums of products, which can be added to in place: the two matrices.
        waiting: what holds it back until the slices before it are done.
    """

    slices: dict[fx.Node, fx.Node]
    products: dict[fx.Node, tuple[fx.Node, fx.Node]]
    waiting: list[fx.Node]


@dataclass(frozen=True)
class _Writer:
    """Writes one part's slices into its graph."""

    graph: fx.Graph
    region: Region
    mode: Any

    def write(self, length: int) -> Slices:
        region = self.region
        slices = []
        pieces: dict[fx.Node, list[fx.Node]] = {node: [] for node in region.results}
        with self.graph.inserting_before(self._place()):
            totals = {node: self._zeros(node) for node in pieces if region.inside[node].dim is None}
            for start in range(0, region.units, length):
                done = [*totals.values()]
                made, products, waiting = self._slice(start, min(start + length, region.units), done)
                read = {node: self._in_memory(made[node]) for node in pieces if node in made}
                slices.append(_names({*made.values(), *read.values(), *waiting}))
                for node, piece in read.items():
                    if region.inside[node].dim is not None:
                        pieces[node].append(piece)
                    else:  # in memory, so that the slice need not wait
                        added = self._call(torch.ops.aten.add.Tensor, (totals[node], piece))
                        totals[node] = self._in_memory(added)
                for node, (left, right) in products.items():
                    totals[node] = adapter.with_product_added(totals[node], left, right)
            wholes = {node: self._whole(node, pieces[node], totals) for node in pieces}
        for node, whole in wholes.items():
            node.replace_all_uses_with(whole, delete_user_cb=lambda user: user not in region.inside)
        for node in reversed(list(region.inside)):
            if node in wholes:
                adapter.take_place(wholes[node], node)
            else:
                self.graph.erase_node(node)
        rows = max(_steps(along, length) for along in region.inside.values())
        wide_bytes = sum(nbytes(_of(node)) for node in region.wide)
        return Slices(tuple(slices), tuple(node.name for node in region.inside), rows, wide_bytes)

    def _place(self) -> fx.Node:
        """What the slices are written in front of; whatever they read is brought before that."""
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        users = {user for node in self.region.results for user in node.users if user not in self.region.inside}
        place = min(users, key=position.__getitem__)
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

    def _slice(self, start: int, stop: int, done: Sequence[fx.Node]) -> _Made:
        """Runs the part for the units [start : stop], once what the slices before it leave is ``done``."""
        made = _Made({}, {}, [])
        for node, along in self.region.inside.items():

            def part_of(operand: fx.Node, part: Part | None, node: fx.Node = node, along: Sliced = along) -> fx.Node:
                if part is None:
                    return operand
                if operand in made.slices:
                    return made.slices[operand]
                cut = self._cut(operand, along.of(part), start, stop)
                for other in done if node in self.region.wide and flops(node) else ():
                    cut = self._call(adapter.AFTER, (cut, other))
                    made.waiting.append(cut)
                return cut

            args, kwargs = self.region.takes[node].arguments(node, part_of, _steps(along, stop - start))
            if along.dim is None and op_name(node) == "aten.mm":
                made.products[node] = args[0], args[1]
                continue
            made.slices[node] = self._call(node.target, args, kwargs, like=node)
            if along.dim is None:
                made.slices[node] = self._cast(made.slices[node], _kept_in(node))
        return made

    def _cut(self, operand: fx.Node, along: Sliced, start: int, stop: int) -> fx.Node:
        low, high = _steps(along, start), _steps(along, stop)
        assert along.dim is not None
        if (low, high) == (0, _of(operand).shape[along.dim]):
            return operand
        return self._call(torch.ops.aten.slice.Tensor, (operand, along.dim, low, high))

    def _zeros(self, node: fx.Node) -> fx.Node:
        """What slices are added to."""
        like = _of(node)
        given = {"dtype": _kept_in(node), "layout": torch.strided, "device": like.device, "pin_memory": False}
        return self._call(torch.ops.aten.full.default, (list(like.shape), 0), given)

    def _in_memory(self, node: fx.Node) -> fx.Node:
        """The value, written before the next slice runs: Inductor would keep what it is computed from."""
        return self._call(adapter.IN_MEMORY, (node,), like=node)

    def _cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        if _of(node).dtype == dtype:
            return node
        return self._call(torch.ops.prims.convert_element_type.default, (node, dtype))

    def _whole(self, node: fx.Node, pieces: list[fx.Node], totals: dict[fx.Node, fx.Node]) -> fx.Node:
        """A result of the part, from its slices."""
        dim = self.region.inside[node].dim
        if dim is None:
            return self._cast(totals[node], _of(node).dtype)
        return self._call(torch.ops.aten.cat.default, (pieces, dim))

    def _call(
        self, target: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None,
        like: fx.Node | None = None,
    ) -> fx.Node:  # fmt: skip
        made = self.graph.call_function(target, tuple(args), kwargs or {})
        given = fx.map_arg((made.args, made.kwargs), lambda n: n.meta["val"])
        made.meta = {} if like is None else like.meta.copy()
        with self.mode:
            made.meta["val"] = target(*given[0], **given[1])
        return made


def _names(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """Names of what can be one function: all but the views at its end, as no two results may share memory."""
    inside = set(nodes)
    for node in sorted(inside, reverse=True):
        if is_view(node) and node.target is not adapter.IN_MEMORY and inside.isdisjoint(node.users):
            inside.remove(node)
    return tuple(node.name for node in sorted(inside))


def _kept_in(node: fx.Node) -> torch.dtype:
    """The type in which a sum over slices is added up."""
    return ACCUMULATED.get(_of(node).dtype, _of(node).dtype)


def _steps(along: Sliced, units: int) -> int:
    return int(along.per * units)


def _of(node: fx.Node) -> Tensor:
    value = tensor_of(node)
    assert value is not None, node.name
    return value
