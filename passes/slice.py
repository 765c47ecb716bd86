"""Runs wide parts of a graph slice by slice, so that what lives only inside them is as large as one slice.

The logits of a language model, their softmax and their gradient are the widest values of a step; once ``advance`` has
brought together what reads them, nothing outside does. In backward it is the decoded operands of convolutions and
wide layers, and the gradients beside them. Such a part is run for a slice of its rows at a time: rows are written one
behind the other, gradients of weights are added up in place. No row's result depends on which slice it is in, but for
the order in which a library adds.

Slices stand in the graph as they run, one after the other. For Inductor each becomes a call of one function
(``outline.py``), which it compiles once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import images_of
from fxapprox.analysis.separable import Region, Search, Steps, products, size_of, width_of
from fxapprox.ir.arguments import operands
from fxapprox.ir.joint import erase_unused
from fxapprox.ir.operator_table import Along
from fxapprox.ir.operators import is_view, op_name, operator_of
from fxapprox.ir.records import Slices
from fxapprox.ir.rows import Part
from fxapprox.ir.tensors import flops, numel, storage_of, tensor_of
from fxapprox.ir.views import cancel_views
from fxapprox.memory.timeline import Half, timeline
from fxapprox.sizes import evaluate

SMALLEST = 2**21  # bytes of the widest value at a product: below, calls cost more than is saved
SLICE = 2**19  # bytes of the widest value in a slice, at least
WORTH = 0.9  # of the predicted peak, at most, is left
NEAR, BESIDE = 0.5, 3  # parts are looked for at this share of the predicted peak, and at so many products beside it
FEWEST_ROWS = 64  # a library's products of matrices are slow with fewer
MOST = 32  # slices
SPARE = 1.01  # so much of the lowest peak is given for fewer slices
ACCUMULATED = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # what sums over slices are kept in

Place = tuple[Half, str]  # an operator, by name
Sliced = tuple[fx.GraphModule, fx.GraphModule, tuple[Slices, ...]]  # the two graphs, and the parts


def run_in_slices(
    forward: fx.GraphModule, backward: fx.GraphModule, count: int | None, *,
    num_fwd_outputs: int, lowering: str, hints: Mapping[str, int], images: Collection[str] = (),
) -> Sliced:  # fmt: skip
    """Runs the separable parts around wide products slice by slice.

    Requires: two graphs that belong together. A part whose sizes are symbolic is left whole.
    Ensures: the graphs given are untouched; inputs, outputs and their names are the same; each operator runs once for
        each row, but for what is decoded: parts that read one code decode it each for itself.
    Changes numerics: sums over rows are added up slice by slice (of 16-bit floats in float32); products may round
        otherwise with fewer rows.

    Args:
        count: how many slices, of every wide part; None: of those parts that the predicted peak hangs on, as few as
            have the lowest peak, if that takes a tenth off.
        hints: values of the symbolic sizes.
        images: the values of forward that Inductor lays out channels-last.

    Returns: (forward, backward, the parts); the graphs given, where there are none.
    """

    if count is None and all(width_of(n) < SMALLEST for gm in (forward, backward) for n in products(gm.graph)):
        return forward, backward, ()
    halves: dict[Half, fx.GraphModule] = {"forward": _by_rows(forward), "backward": _by_rows(backward)}
    in_place = lowering == "inductor"
    searches: dict[Half, Search] = {half: Search(gm.graph) for half, gm in halves.items()}
    if count is not None:
        cuts = [cut for half, search in searches.items() for cut in _wide_parts(half, search, count)]
        return _written(halves, images, in_place, cuts) if cuts else (forward, backward, ())

    def trial(cuts: list[_Cut]) -> _Trial:
        written = _written(halves, images, in_place, cuts) if cuts else (forward, backward, ())
        alive = timeline(*written[:2], num_fwd_outputs=num_fwd_outputs, lowering=lowering, slices=written[2])
        places: list[Place] = [(m.half, m.name) for m in alive.moments]
        made: dict[Place, Place] = {(places[life.start][0], life.name): places[life.start] for life in alive.lives}
        live = {at: evaluate(m.live, hints) for at, m in zip(places, alive.moments, strict=True)}
        return _Trial(cuts, written, live, made)

    found = _lowest(searches, trial)
    return _fewest(found, trial).written if found.cuts else found.written


def _lowest(searches: Mapping[Half, Search], trial: Callable[[list[_Cut]], _Trial]) -> _Trial:
    """The parts with which the predicted peak is lowest; none, if that takes less than a tenth off."""
    now = best = whole = trial([])
    tried, left = set[Place](), list[_Cut]()
    while True:
        left += [cut for half, search in searches.items() for cut in _parts_alive(half, search, now, tried)]
        if not (more := _above_the_rest(left, now)):
            return best if best.peak <= WORTH * whole.peak else whole
        left = [cut for cut in left if cut not in more]
        for cuts in (more, *([cut] for cut in more)):  # one by one, if not all together
            found = trial([*now.cuts, *cuts])
            if found.peak <= now.peak:
                now, best = found, found if found.peak < best.peak else best
                if cuts is more:
                    break


def _fewest(found: _Trial, trial: Callable[[list[_Cut]], _Trial]) -> _Trial:
    """The same parts with as few slices each as have that peak, nearly; those that do not count for it are whole."""
    most, best = SPARE * found.peak, found
    for at in reversed(range(len(found.cuts))):
        ways = found.cuts[at].longer()
        low, high = 0, len(ways)
        while low < high:  # the fewer slices, the higher the peak
            middle = (low + high) // 2
            fewer = trial([*found.cuts[:at], *ways[middle], *found.cuts[at + 1 :]])
            if fewer.peak <= most:
                best, low = fewer, middle + 1
            else:
                high = middle
        found = best
    return found


def _by_rows(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy whose operators read rows of products as rows, where they can."""
    mode = adapter.fake_mode_of(gm)
    if mode is None:
        return gm
    copied = adapter.copy_module(gm)
    if not cancel_views(copied.graph, mode):
        return gm
    copied.recompile()
    return copied


class _Cut(NamedTuple):
    """A part of one half, and how many units there are in a slice."""

    half: Half
    region: Region
    length: int

    def longer(self) -> list[list[_Cut]]:
        """The same in half as many slices, or fewer, of one length each; and so on, to nothing at last."""
        units, step = self.region.units, self.region.step
        ways, length = list[list[_Cut]](), self.length
        while length < units:
            length = next((n for n in range(2 * length, units) if units % n == 0 and n % step == 0), units)
            ways.append([_Cut(self.half, self.region, length)] if length < units else [])
        return ways


class _Trial(NamedTuple):
    """The graphs with some parts in slices.

    Attributes:
        live: bytes predicted to be alive, at each operator that something fused ends with, in order.
        made: {a value: at which of these it is made}.
    """

    cuts: list[_Cut]
    written: Sliced
    live: dict[Place, int]
    made: dict[Place, Place]

    @property
    def peak(self) -> int:
        return max(self.live.values(), default=0)


def _wide_parts(half: Half, search: Search, count: int) -> list[_Cut]:
    """The parts around products at least a quarter as wide as the widest one, in so many slices each."""
    widths = {node: width_of(node) for node in products(search.graph)}
    widest = max(widths.values(), default=0)
    return list(_cuts(half, search, [node for node, width in widths.items() if 4 * width >= widest], count))


def _parts_alive(half: Half, search: Search, now: _Trial, tried: set[Place]) -> list[_Cut]:
    """The parts around wide products at which nearly as much is alive as at the peak.

    Args:
        tried: products that parts were looked for around; gets those of this time.
    """
    wide = {node.name: node for node in products(search.graph) if width_of(node) >= SMALLEST}
    peak = max(now.live, key=now.live.__getitem__)
    order = [place for place in now.live if place == peak or (place[0] == half and place[1] in wide)]
    at = order.index(peak)
    beside = order[max(at - BESIDE, 0) : at + BESIDE + 1]
    near = [place for place in order if place in beside or now.live[place] > NEAR * now.peak]
    seeds = [wide[name] for own, name in near if own == half and name in wide and (own, name) not in tried]
    tried.update((half, node.name) for node in seeds)
    return list(_cuts(half, search, seeds, None))


def _above_the_rest(cuts: Sequence[_Cut], now: _Trial) -> list[_Cut]:
    """Those of the parts during which more is alive than at any time outside of all of them."""
    spans = [_span(cut, now) for cut in cuts]
    live = now.live
    rest = max((live[place] for place in live.keys() - set().union(*spans)), default=0)
    return [cut for cut, span in zip(cuts, spans, strict=True) if any(live[place] > rest for place in span)]


def _span(cut: _Cut, now: _Trial) -> Sequence[Place]:
    """When a part runs, from its first operator to its last, and to where its results are made."""
    order, own = [*now.live], set[Place]((cut.half, node.name) for node in cut.region.inside)
    ran = own | {now.made[place] for place in own & now.made.keys()}
    at = [number for number, place in enumerate(order) if place in ran]
    return order[at[0] : at[-1] + 1] if at else ()


def _cuts(half: Half, search: Search, seeds: Sequence[fx.Node], count: int | None) -> Iterator[_Cut]:
    """The parts around these products that can be cut: around the widest first, and of those as wide the earliest."""
    for region in search.regions(sorted(seeds, key=lambda node: -width_of(node).bit_length())):
        length = _length(region, count)
        if length < region.units and not any(adapter.mutates(node) for node in region.inside):
            yield _Cut(half, region, length)


def _length(region: Region, count: int | None) -> int:
    """Units in a slice; all of them if it is not worth cutting."""
    if count is None:
        widest = max(size_of(node) for node in region.wide)
        images = any(operator_of(node).rows in (Along.CONVOLUTION, Along.GRADIENTS) for node in region.inside)
        count = min(MOST, widest // SLICE, region.units // (1 if images else FEWEST_ROWS))
        count = next((n for n in range(count, 2 * count) if region.units % n == 0), count)  # of one size: one function
    units = math.ceil(region.units / max(1, count))
    return min(region.units, math.ceil(units / region.step) * region.step)


def _written(
    halves: Mapping[Half, fx.GraphModule], images: Collection[str], in_place: bool, cuts: Sequence[_Cut]
) -> Sliced:
    """Copies of the graphs with these parts in slices; a graph itself, if it has none."""
    made, slices = [], []
    for half, gm in halves.items():
        mode, own = adapter.fake_mode_of(gm), [cut for cut in cuts if cut.half == half]
        if mode is not None and own:
            gm = adapter.copy_module(gm)
            nodes = {node.name: node for node in gm.graph.nodes}
            known = images if half == "forward" else images_of(gm.graph, images) if images else ()
            writers = [_Writer(gm.graph, half, cut.region.within(nodes), mode, known, in_place) for cut in own]
            slices += [writer.write(cut.length) for writer, cut in zip(writers, own, strict=True)]
            erase_unused(gm.graph)
            gm.recompile()
        made.append(gm)
    return made[0], made[1], tuple(slices)


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
class _Writer:
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
    half: Half
    region: Region
    mode: Any
    images: Collection[str]
    in_place: bool
    ordered: dict[fx.Node, fx.Node] = field(default_factory=dict)
    rows: dict[fx.Node, fx.Node] = field(default_factory=dict)
    over: dict[fx.Node, fx.Node] = field(default_factory=dict)
    known: list[Any] = field(default_factory=list)
    traced: list[Any] = field(default_factory=list)

    def write(self, length: int) -> Slices:
        region = self.region
        slices = []
        values: dict[int, list[Any]] = {}  # that were traced for a slice of so many units: the next one's are like them
        pieces: dict[fx.Node, list[fx.Node]] = {node: [] for node in region.results}
        with self.graph.inserting_before(self._place()):
            for operand in self._taken():
                self._in_order(operand)
            totals = {node: self._zeros(node) for node in pieces if region.inside[node].dim is None}
            if self.in_place:
                self.rows.update((node, self._room(node)) for node in pieces if node not in totals)
            for start in range(0, region.units, length):
                done, stop = [*totals.values()], min(start + length, region.units)
                self.known[:] = reversed(values.get(stop - start, []))
                self.traced.clear()
                made, read, products, waiting = self._slice(start, stop, done, pieces.keys())
                copies = (source for node in read.values() for source in node.all_input_nodes)
                slices.append(_names({*made.values(), *copies, *read.values(), *waiting}))
                for node, piece in read.items():
                    if node in self.rows:
                        along = region.inside[node]
                        assert along.dim is not None
                        self.rows[node] = adapter.with_part_put(self.rows[node], piece, along.dim, _steps(along, start))
                    elif node not in totals:
                        pieces[node].append(piece)
                    else:  # in memory, so that the slice need not wait
                        added = self._call(torch.ops.aten.add.Tensor, (totals[node], piece))
                        kept = self._call(adapter.IN_MEMORY, (added,))  # and as the total before: functions read both
                        totals[node] = self._call(adapter.IN_ORDER, (kept, list(_of(totals[node]).stride())))
                for node, (left, right) in products.items():
                    totals[node] = adapter.with_product_added(totals[node], left, right)
                values.setdefault(stop - start, [*self.traced])
            self.known.clear()
            wholes = {node: self._whole(node, pieces[node], totals) for node in pieces}
        for node, whole in wholes.items():
            node.replace_all_uses_with(whole, delete_user_cb=lambda user: user not in region.inside)
        for node in reversed(list(region.inside)):
            if node in wholes:
                adapter.take_place(wholes[node], node)
            elif not node.users:
                self.graph.erase_node(node)
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
            made.slices[node] = self._call(target, args, kwargs, like=node)
            if along.dim is None:
                made.slices[node] = self._cast(made.slices[node], _kept_in(node))
            if node in results:
                made.read[node] = self._in_memory(made.slices[node], made.read.values())
        return made

    def _cut(self, operand: fx.Node, along: Steps, start: int, stop: int) -> fx.Node:
        low, high = _steps(along, start), _steps(along, stop)
        assert along.dim is not None
        operand = self.rows[self.over[operand]] if operand in self.over else self._in_order(operand)
        if (low, high) == (0, _of(operand).shape[along.dim]):
            return operand
        return self._call(torch.ops.aten.slice.Tensor, (operand, along.dim, low, high))

    def _room(self, node: fx.Node) -> fx.Node:
        """Where rows are written: over what is read row by row for the last time, or into memory of their own."""
        for operand in self._taken():
            if operand not in self.over and self._is_like(operand, node) and self._is_last_read(operand, node):
                self.over[operand] = node
                return self._in_order(operand)
        like, image = _of(node), node.name in self.images
        laid_out = torch.empty_like(like, memory_format=torch.channels_last if image else torch.preserve_format)
        given = {"dtype": like.dtype, "layout": torch.strided, "device": like.device, "pin_memory": False}
        return self._call(torch.ops.aten.empty_strided.default, (list(like.shape), list(laid_out.stride())), given)

    def _is_like(self, operand: fx.Node, node: fx.Node) -> bool:
        one, other = _of(operand), _of(node)
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
        if 0 in _of(operand).stride():  # expanded: there is no such memory
            return operand
        if operand not in self.ordered:
            kept = self._call(adapter.IN_MEMORY, (operand,)) if operand.op == "call_function" else operand
            dense = torch.channels_last if image else torch.preserve_format  # a part of a value is copied out of it
            like = torch.empty_like(_of(operand), memory_format=dense)
            self.ordered[operand] = self._call(adapter.IN_ORDER, (kept, list(like.stride())))
        return self.ordered[operand]

    def _zeros(self, node: fx.Node) -> fx.Node:
        """What slices are added to."""
        like = _of(node)
        given = {"dtype": _kept_in(node), "layout": torch.strided, "device": like.device, "pin_memory": False}
        return self._call(torch.ops.aten.full.default, (list(like.shape), 0), given)

    def _in_memory(self, made: fx.Node, others: Collection[fx.Node]) -> fx.Node:
        """A result of a slice, written before the next one runs: Inductor would keep what it is computed from.

        Each has memory of its own: of a view of a part, the rest would stay as long.

        Args:
            others: the results before it.
        """
        owner = storage_of(made)
        if numel(_of(owner)) != numel(_of(made)) or owner in map(storage_of, others):
            made = self._call(torch.ops.aten.clone.default, (made,), like=made)
        return self._call(adapter.IN_MEMORY, (made,), like=made)

    def _cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        if _of(node).dtype == dtype:
            return node
        return self._call(torch.ops.prims.convert_element_type.default, (node, dtype))

    def _whole(self, node: fx.Node, pieces: list[fx.Node], totals: dict[fx.Node, fx.Node]) -> fx.Node:
        """A result of the part, from its slices; laid out as it was, as views of it may only be had so."""
        dim, strides = self.region.inside[node].dim, _of(node).stride()
        if node in self.rows:
            return self.rows[node]
        if dim is None:
            whole = self._cast(totals[node], _of(node).dtype)
            return whole if _of(whole).stride() == strides else self._call(adapter.IN_ORDER, (whole, list(strides)))
        whole = self._call(torch.ops.aten.cat.default, (pieces, dim))
        if _of(whole).stride() == strides:
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


def _of(node: fx.Node) -> Tensor:
    value = tensor_of(node)
    assert value is not None, node.name
    return value
