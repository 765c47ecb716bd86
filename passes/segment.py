"""Where the boundaries of checkpoint segments lie: cuts of forward that carry few bytes, chosen for the lowest peak.

Chen et al. 2016 ("Training Deep Nets with Sublinear Memory Cost", section 4) keep the values at the boundaries of
segments and compute the rest of each segment again when backward gets to it. A boundary here is a cut of forward's
order: all values that are made before it and needed behind it. In a plain chain that is one value (a dominator), in a
residual network the residual stream, in a U-Net the current value and the skips that are open.

Which cuts to take is a shortest path: with C(i, j) the bytes that the cut j adds to what the cut i carries, and P(i, j)
the most that the backward of a segment between them has in memory, the boundaries up to i and one segment have to fit
into the peak M, for every segment:

    C(0, .) + ... + C(., i) + P(i, j) <= M

P is the largest sum, over the segment's positions, of what it has saved up to there (what is behind has been freed) and
of what backward works with there, which forward's live values stand for; while a segment is computed again, the
gradient of what it carries to the next one waits. The least M has the lowest peak; among the plans for one M the one is
taken that computes the least again: its last segment, which is saved as it was, starts the earliest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.rerun import constants
from fxapprox.ir.tensors import nbytes, storage_of, tensor_of
from fxapprox.options import Count

WORTH = 0.98  # of the peak without segments: more is not worth a second forward
WORKING = 1.5  # bytes that backward works with at a position, for each byte alive there in forward
MOST_CUTS = 256  # considered; of more, the one that carries the least in each stretch
STEPS = 24  # of the bisection for the least peak: to a ten-millionth


@dataclass(frozen=True, slots=True)
class Cut:
    """A boundary.

    Attributes:
        at: position in forward's order: the first node behind it.
        carried: the values that are made before it and needed behind it, in order.
    """

    at: int
    carried: tuple[fx.Node, ...]


def segment(
    forward: fx.GraphModule,
    saved: Collection[fx.Node],
    count: Count,
    *,
    kept: Collection[fx.Node] = (),
    sizes: Mapping[fx.Node, int] = MappingProxyType({}),
    together: Iterable[Sequence[fx.Node]] = (),
) -> tuple[Cut, ...]:
    """The boundaries between the segments; the segment behind the last one is not computed again.

    Requires: a forward graph; sizes by their hints.
    Ensures: every saved value can be computed from the graph's inputs, ``kept`` and the cut before it.
    Changes numerics: no graph is touched.

    Args:
        saved: what backward reads.
        count: how many segments; "sqrt": as many as give the lowest peak; a fraction: as few operators run again as
            take this share of it off the peak.
        kept: values that are at hand in backward whatever happens.
        sizes: bytes that values take up in a boundary, where that is not their own size.
        together: values between which no cut lies: the parts of one code. Computed again apart from each other they
            could be of two values, as a compiler rounds otherwise the second time.

    Returns: no cut where none lowers the peak (with "sqrt"), or where there is no place for one.
    """
    lines = _Lines.of(forward, saved, kept, sizes, together)
    problem = _Problem.of(lines)
    if isinstance(count, int):
        return problem.with_segments(count)
    return problem.lowest_peak() if count == "sqrt" else problem.lower_peak(count)


def needed_for(
    targets: Iterable[fx.Node],
    known: Collection[fx.Node] = (),
    sources: Callable[[fx.Node], Iterable[fx.Node]] = lambda node: node.all_input_nodes,
) -> set[fx.Node]:
    """The operators to run to compute the targets from the graph's inputs and from what is known.

    Args:
        sources: what a node is computed from.
    """
    found: set[fx.Node] = set()
    stack = [node for node in targets if node not in known]
    while stack:
        node = stack.pop()
        if node.op != "call_function" or node in found or node in known:
            continue
        found.add(node)
        stack += sources(node)
    return found


def memory_of(node: fx.Node) -> fx.Node:
    """What a boundary carries for a value: the tensor that it is a view of."""
    base = storage_of(node)
    return base if tensor_of(base) is not None else node


def _bytes(node: fx.Node) -> int:
    value = tensor_of(node)
    return nbytes(value) if value is not None else 0


# --- what crosses each position ------------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """The lives of forward's values: from where they are made to where they are read for the last time.

    Attributes:
        spans: (position made, position of the last reader, value, bytes in a boundary), ordered.
        closed: positions at which no cut can be made: between an operator with several results and their names, and
            between the parts of a code.
        saved: (position, bytes) of what backward reads.
        end: number of nodes.
    """

    spans: list[tuple[int, int, fx.Node, int]]
    closed: set[int]
    saved: list[tuple[int, int]]
    end: int

    @classmethod
    def of(
        cls, forward: fx.GraphModule, saved: Collection[fx.Node], kept: Collection[fx.Node],
        sizes: Mapping[fx.Node, int], together: Iterable[Sequence[fx.Node]],
    ) -> _Lines:  # fmt: skip
        order = {node: i for i, node in enumerate(forward.graph.nodes)}
        needed = needed_for(saved, kept)
        fixed = constants(needed, forward.graph)
        last: dict[fx.Node, int] = {}
        closed: set[int] = set()
        for node in needed:
            for source in node.all_input_nodes:
                if source not in needed:
                    continue
                if adapter.is_symbolic_scalar(source) or source in fixed:
                    continue  # follows from the inputs' sizes
                if tensor_of(source) is None:
                    closed.update(range(order[source] + 1, order[node] + 1))
                    continue
                base = memory_of(source)
                if base not in needed:
                    continue  # a view of an input
                last[base] = max(last.get(base, 0), order[node])
        for code in together:
            places = [order[node] for node in code]
            closed.update(range(min(places) + 1, max(places) + 1))
        spans = sorted((order[node], until, node, sizes.get(node, _bytes(node))) for node, until in last.items())
        parts = sorted((order[node], _bytes(node)) for node in saved if node in needed)
        return cls(spans, closed, parts, len(order))


@dataclass(frozen=True)
class _Problem:
    """The possible cuts, and the costs of a segment between each two of them; see the top of this file.

    Attributes:
        cuts: by position; the first is forward's beginning, which carries nothing, the last its end.
        added, peak: (cuts, cuts), bytes: C and P; infinite where a segment cannot be.
    """

    cuts: tuple[Cut, ...]
    added: np.ndarray
    peak: np.ndarray

    @classmethod
    def of(cls, lines: _Lines) -> _Problem:
        places, level = _places(lines)
        cuts = (Cut(0, ()), *places, Cut(lines.end, ()))
        n = len(cuts)
        starts = [cut.at for cut in cuts]
        made = {node: (start, size) for start, _, node, size in lines.spans}
        added = np.full((n, n), np.inf)
        for j, cut in enumerate(cuts):
            carried = [made[node] for node in cut.carried]
            for i in range(j):
                added[i, j] = sum(size for start, size in carried if start >= starts[i])
        saved = np.zeros(lines.end + 1)
        for at, size in lines.saved:
            saved[at + 1] += size
        saved = saved.cumsum()
        there = saved + WORKING * level
        highest = [there[a : b + 1].max() for a, b in pairwise(starts)]
        peak = np.full((n, n), np.inf)
        for i in range(n - 1):
            peak[i, i + 1 :] = np.maximum.accumulate(highest[i:]) - saved[starts[i]]
        peak[:, :-1] += level[starts[:-1]]
        return cls(cuts, added, peak)

    def lowest_peak(self) -> tuple[Cut, ...]:
        return self._bisect(self._worth, self._path)[1]

    def lower_peak(self, share: float) -> tuple[Cut, ...]:
        """The cuts that take this share of what they can off the peak, and compute the least again."""
        least, found = self._bisect(self._worth, self._path)
        return (self._path(least + (1 - share) * (self._worth - least)) or found) if found else ()

    @property
    def _worth(self) -> float:
        """The highest peak for which cuts are worth a second forward."""
        return WORTH * float(self.peak[0, -1])

    def with_segments(self, count: int) -> tuple[Cut, ...]:
        """The cuts into this many segments with the lowest peak; fewer if there are fewer places."""
        count = min(count, len(self.cuts) - 1)
        high = float(np.ma.masked_invalid(self.peak).max() + np.ma.masked_invalid(self.added).sum())
        return self._bisect(high, lambda peak: self._path_of(count, peak))[1]

    def _bisect(
        self, high: float, path: Callable[[float], tuple[Cut, ...] | None]
    ) -> tuple[float, tuple[Cut, ...]]:  # fmt: skip
        """(the least peak up to ``high``, the path for it); no cuts if there is none."""
        low, best = 0.0, path(high) or ()
        for _ in range(STEPS if best else 0):
            middle = (low + high) / 2
            found = path(middle)
            if found is None:
                low = middle
            else:
                high, best = middle, found
        return high, best

    def _path(self, peak: float) -> tuple[Cut, ...] | None:
        """The cuts that keep to a peak and compute the least again; None if there are none."""
        n = len(self.cuts)
        carried = np.full(n, np.inf)  # least bytes of all boundaries up to this one
        carried[0] = 0
        before = [0] * n
        for j in range(1, n - 1):
            cost = np.where(carried[:j] + self.peak[:j, j] <= peak, carried[:j] + self.added[:j, j], np.inf)
            before[j] = int(cost.argmin())
            carried[j] = cost[before[j]]
        last = carried[:-1] + self.peak[:-1, -1] <= peak
        return self._backwards(int(last.argmax()), lambda j, _: before[j], n) if last.any() else None

    def _path_of(self, count: int, peak: float) -> tuple[Cut, ...] | None:
        """As :meth:`_path`, with this many segments."""
        n = len(self.cuts)
        carried = np.full(n, np.inf)
        carried[0] = 0
        before: list[list[int]] = []
        for _ in range(count - 1):
            total = carried[:, None]
            cost = np.where(total + self.peak <= peak, total + self.added, np.inf)
            before.append(cost.argmin(0).tolist())
            carried = cost.min(0)
            carried[-1] = np.inf
        last = carried[:-1] + self.peak[:-1, -1] <= peak
        if not last.any():
            return None
        return self._backwards(int(last.argmax()), lambda j, step: before[-1 - step][j], count)

    def _backwards(self, last: int, before: Callable[[int, int], int], most: int) -> tuple[Cut, ...]:
        found = []
        for step in range(most):
            if last == 0:
                break
            found.append(self.cuts[last])
            last = before(last, step)
        return tuple(reversed(found))


def _places(lines: _Lines) -> tuple[list[Cut], np.ndarray]:
    """The cuts worth considering: where the bytes carried have a minimum; and the bytes at every position."""
    level = np.zeros(lines.end + 2)
    for made, until, _, size in lines.spans:
        level[made + 1] += size
        level[until + 1] -= size
    level = level.cumsum()[:-1]
    changed = sorted({at for made, until, _, _ in lines.spans for at in (made + 1, until + 1) if at < lines.end})
    minima = [
        at for before, at, after in zip([0, *changed], changed, [*changed[1:], lines.end], strict=False)
        if level[at] <= level[before] and level[at] <= level[after] and level[at] > 0 and at not in lines.closed
    ]  # fmt: skip
    if len(minima) > MOST_CUTS:
        stretches = np.array_split(minima, MOST_CUTS)
        minima = [int(stretch[level[stretch].argmin()]) for stretch in stretches]
    return [Cut(at, _carried(lines, at)) for at in minima], level


def _carried(lines: _Lines, at: int) -> tuple[fx.Node, ...]:
    return tuple(node for made, until, node, _ in lines.spans if made < at <= until)
