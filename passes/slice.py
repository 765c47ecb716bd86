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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import images_of
from fxapprox.analysis.separable import Region, Search, products, size_of, width_of
from fxapprox.ir.joint import erase_unused
from fxapprox.ir.operator_table import Along
from fxapprox.ir.operators import operator_of
from fxapprox.ir.records import Slices
from fxapprox.ir.tensors import element_of, is_float, value_of
from fxapprox.ir.views import cancel_views
from fxapprox.memory.timeline import Half, timeline
from fxapprox.memory.workspace import is_slow_alone
from fxapprox.passes.slice_writer import SliceWriter
from fxapprox.sizes import evaluate

SMALLEST = 2**21  # bytes of the widest value at a product: below, calls cost more than is saved
SLICE = 2**19  # bytes of the widest value in a slice, at least
WORTH = 0.9  # of the predicted peak, at most, is left
NEAR, BESIDE = 0.5, 3  # parts are looked for at this share of the predicted peak, and at so many products beside it
FEWEST_ROWS, FEWER_ROWS = 64, 16  # a library's products of matrices are slow with fewer; rather than more than
LARGE = 2**24  # bytes of the widest value in a slice, the second
MOST = 32  # slices
SPARE = 1.01  # so much of the lowest peak is given for fewer slices

Place = tuple[Half, str]  # an operator, by name
_Samples = dict[tuple[Half, tuple[str, ...]], dict[int, list[Any]]]  # values of a part's slices, by their length
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

    samples: _Samples = {}

    def trial(cuts: list[_Cut]) -> _Trial:
        written = _written(halves, images, in_place, cuts, samples) if cuts else (forward, backward, ())
        alive = timeline(*written[:2], num_fwd_outputs=num_fwd_outputs, lowering=lowering, slices=written[2])
        places: list[Place] = [(m.half, m.name) for m in alive.moments]
        made: dict[Place, Place] = {(places[life.start][0], life.name): places[life.start] for life in alive.lives}
        live = {at: evaluate(m.live, hints) for at, m in zip(places, alive.moments, strict=True)}
        return _Trial(cuts, written, live, made)

    found = _lowest(searches, trial)
    cuts = _fewest(found, trial).cuts if found.cuts else ()
    return _written(halves, images, in_place, cuts) if cuts else (forward, backward, ())


def _lowest(searches: Mapping[Half, Search], trial: Callable[[list[_Cut]], _Trial]) -> _Trial:
    """The parts with which the predicted peak is lowest; none, if that takes less than a tenth off."""
    now = best = whole = trial([])
    tried, left = set[Place](), list[_Cut]()
    while True:
        left += [cut for half, search in searches.items() for cut in _parts_alive(half, search, now, tried)]
        if not (more := _above_the_rest(left, now)):
            return best if best.peak <= WORTH * whole.peak else whole
        left = [cut for cut in left if cut not in more]
        while more:
            found = trial([*now.cuts, *more])
            if not (worse := [cut for cut in more if _level(cut, found) > _level(cut, now)]):
                break
            more = [cut for cut in more if cut not in worse]
        else:
            continue
        if found.peak <= now.peak:
            now, best = found, found if found.peak < best.peak else best


def _fewest(found: _Trial, trial: Callable[[list[_Cut]], _Trial]) -> _Trial:
    """The same parts with as few slices each as have that peak, nearly; those that do not count for it are whole.

    They run one after the other: whether a part has enough slices is seen by what is alive while it runs, of all at
    once.
    """
    most = SPARE * found.peak
    ways = [[[cut], *cut.longer()] for cut in found.cuts]
    enough, few = [0] * len(ways), [*map(len, ways)]  # the way with fewest slices that are, that with most that are not
    while any(fewer - at > 1 for at, fewer in zip(enough, few, strict=True)):
        tried = [(at + fewer) // 2 for at, fewer in zip(enough, few, strict=True)]
        now = trial([cut for way, at in zip(ways, tried, strict=True) for cut in way[at]])
        for part, (cut, at) in enumerate(zip(found.cuts, tried, strict=True)):
            if few[part] - enough[part] > 1:
                (enough if _level(cut, now) <= most else few)[part] = at
    while any(enough):
        now = trial([cut for way, at in zip(ways, enough, strict=True) for cut in way[at]])
        if now.peak <= most:
            return now
        back = [0 if _level(cut, now) > most else at for cut, at in zip(found.cuts, enough, strict=True)]
        enough = back if back != enough else [0] * len(ways)
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

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.region.inside)

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
    slices = (p.names for p in now.written[2] if (p.half, p.operators) == (cut.half, cut.operators))
    kept = [node.name for node in cut.region.inside if node not in cut.region.remade]
    order, own = [*now.live], set[Place]((cut.half, name) for each in (kept, *next(slices, ())) for name in each)
    ran = own | {now.made[place] for place in own & now.made.keys()}
    at = [number for number, place in enumerate(order) if place in ran]
    return order[at[0] : at[-1] + 1] if at else ()


def _level(cut: _Cut, now: _Trial) -> int:
    """Bytes alive while a part runs, at most."""
    return max((now.live[place] for place in _span(cut, now)), default=0)


def _cuts(half: Half, search: Search, seeds: Sequence[fx.Node], count: int | None) -> Iterator[_Cut]:
    """The parts around these products that can be cut: around the widest first, and of those as wide the earliest."""
    for region in search.regions(sorted(seeds, key=lambda node: -width_of(node).bit_length())):
        length = _length(region, count)
        if length < region.units and not any(adapter.mutates(node) for node in region.inside):
            yield _Cut(half, region, length)


def _length(region: Region, count: int | None) -> int:
    """Units in a slice; all of them if it is not worth cutting."""
    if count is None:
        floats = [n for n in region.wide if (value := element_of(n)) is not None and is_float(value.dtype)]
        widest = max(map(size_of, floats or region.wide))  # integers only number, in the loops that read them
        many, more = (int(region.units / _fewest_units(region, rows)) for rows in (FEWEST_ROWS, FEWER_ROWS))
        count = min(MOST, widest // SLICE, max(many, min(more, widest // LARGE)))
        count = next((n for n in range(count, 2 * count) if region.units % n == 0), count)  # of one size: one function
    units = math.ceil(region.units / max(1, count))
    return min(region.units, math.ceil(units / region.step) * region.step)


def _fewest_units(region: Region, rows: int) -> Fraction:
    """Units in a slice, at least: so many that its products of matrices have this many rows."""
    products = (
        along.per for node, along in region.inside.items()
        if operator_of(node).rows is Along.PRODUCT and not (along.dim == 0 and value_of(node).dim() == 3)
    )  # fmt: skip
    alone = (1 / along.per for node, along in region.inside.items() if along.dim == 0 and is_slow_alone(node))
    return max([Fraction(1), *(rows / per for per in products), *(2 * units for units in alone)])


def _written(
    halves: Mapping[Half, fx.GraphModule], images: Collection[str], in_place: bool, cuts: Sequence[_Cut],
    samples: _Samples | None = None,
) -> Sliced:  # fmt: skip
    """Copies of the graphs with these parts in slices; a graph itself, if it has none.

    Args:
        samples: if a few slices of each part are enough: values of those that were written before.
    """
    made, slices = [], []
    for half, gm in halves.items():
        mode, own = adapter.fake_mode_of(gm), [cut for cut in cuts if cut.half == half]
        if mode is not None and own:
            gm = adapter.copy_module(gm)
            nodes = {node.name: node for node in gm.graph.nodes}
            laid_out = images if half == "forward" else images_of(gm.graph, images) if images else ()
            writers = [SliceWriter(gm.graph, half, cut.region.within(nodes), mode, laid_out, in_place) for cut in own]
            for writer, cut in zip(writers, own, strict=True):
                known = samples.setdefault((half, cut.operators), {}) if samples is not None else None
                slices.append(writer.write(cut.length, known))
            erase_unused(gm.graph)
            gm.recompile()
        made.append(gm)
    return made[0], made[1], tuple(slices)
