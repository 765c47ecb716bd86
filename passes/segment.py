"""Where the boundaries of checkpoint segments lie: the cuts of forward that carry the fewest bytes, chosen for the peak.

Chen et al. 2016 ("Training Deep Nets with Sublinear Memory Cost", section 4) keep the values at the boundaries of
segments and compute the rest of each segment again when backward gets to it. A boundary here is a cut of forward's
order: all values that are made before it and needed behind it. In a plain chain that is one value (a dominator), in a
residual network the residual stream, in a U-Net the current value and the skips that are open.

Which cuts to take is a shortest path: with C(i, j) the bytes that the cut j adds to what the cut i carries, S(i, j) the
bytes saved for backward between them and W(i, j) the most that forward works with there, the boundaries up to i and
one segment have to fit into the peak M, for every segment:

    C(0, .) + ... + C(., i) + S(i, j) + W(i, j) <= M

The least M has the lowest peak; among the plans for one M the one is taken that computes the least again: its last
segment, which is saved as it is, starts the earliest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.graph import nbytes, storage_of, tensor_of
from fxapprox.options import Count

WORTH = 0.9  # of the peak without segments: more is not worth a second forward
MOST_CUTS = 400  # considered; of more, those that carry the least
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
    carried_bytes: Callable[[fx.Node], int] | None = None,
) -> tuple[Cut, ...]:
    """The boundaries between the segments; the segment behind the last one is not computed again.

    Requires: a forward graph; sizes by their hints.
    Ensures: every saved value can be computed from the graph's inputs, ``kept`` and the cut before it.
    Changes numerics: no graph is touched.

    Args:
        saved: what backward reads.
        count: how many segments; "sqrt": as many as give the lowest peak.
        kept: values that are at hand in backward whatever happens.
        carried_bytes: what a value takes up in a boundary; its own bytes by default.

    Returns: no cut where none lowers the peak (with "sqrt"), or where there is no place for one.
    """
    lines = _Lines.of(forward, saved, kept, carried_bytes or _bytes)
    problem = _Problem.of(lines)
    if count == "sqrt":
        return problem.lowest_peak()
    return problem.with_segments(count)


def needed_for(targets: Iterable[fx.Node], known: Collection[fx.Node] = ()) -> set[fx.Node]:
    """The operators to run to compute the targets from the graph's inputs and from what is known."""
    found: set[fx.Node] = set()
    stack = [node for node in targets if node not in known]
    while stack:
        node = stack.pop()
        if node.op != "call_function" or node in found or node in known:
            continue
        found.add(node)
        stack += node.all_input_nodes
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
        closed: positions at which no cut can be made: between an operator with several results and their names.
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
        carried_bytes: Callable[[fx.Node], int],
    ) -> _Lines:  # fmt: skip
        order = {node: i for i, node in enumerate(forward.graph.nodes)}
        needed = needed_for(saved, kept)
        last: dict[fx.Node, int] = {}
        closed: set[int] = set()
        for node in needed:
            for source in node.all_input_nodes:
                if source not in needed:
                    continue
                if adapter.is_symbolic_scalar(source):
                    continue  # a function of the inputs' sizes
                if tensor_of(source) is None:
                    closed.update(range(order[source] + 1, order[node] + 1))
                    continue
                base = memory_of(source)
                if base not in needed:
                    continue  # a view of an input
                last[base] = max(last.get(base, 0), order[node])
        spans = sorted((order[node], until, node, carried_bytes(node)) for node, until in last.items())
        parts = sorted((order[node], _bytes(node)) for node in saved if node in needed)
        return cls(spans, closed, parts, len(order))


@dataclass(frozen=True)
class _Problem:
    """The possible cuts, and the costs of a segment between each two of them; see the top of this file.

    Attributes:
        cuts: by position; the first is forward's beginning, which carries nothing, the last its end.
        added, inside, working: (cuts, cuts), bytes: C, S and W; infinite where a segment cannot be.
    """

    cuts: tuple[Cut, ...]
    added: np.ndarray
    inside: np.ndarray
    working: np.ndarray

    @classmethod
    def of(cls, lines: _Lines) -> _Problem:
        places, level = _places(lines)
        cuts = (Cut(0, ()), *places, Cut(lines.end, ()))
        n = len(cuts)
        added = np.full((n, n), np.inf)
        starts = [cut.at for cut in cuts]
        made = {node: (start, size) for start, _, node, size in lines.spans}
        for j, cut in enumerate(cuts):
            carried = [made[node] for node in cut.carried]
            for i in range(j):
                added[i, j] = sum(size for start, size in carried if start >= starts[i])
        positions = [at for at, _ in lines.saved]
        total = [0.0]
        for _, size in lines.saved:
            total.append(total[-1] + size)
        up_to = np.array([total[bisect_left(positions, at)] for at in starts])
        inside = up_to[None, :] - up_to[:, None]
        highest = [max(level[a:b], default=0) for a, b in zip(starts[:-1], starts[1:], strict=True)]
        working = np.zeros((n, n))
        for i in range(n - 1):
            working[i, i + 1 :] = np.maximum.accumulate(highest[i:])
        return cls(cuts, added, inside, working)

    def lowest_peak(self) -> tuple[Cut, ...]:
        high = float(self.inside[0, -1] + self.working[0, -1])
        best: tuple[Cut, ...] = ()
        low, high = 0.0, WORTH * high
        for _ in range(STEPS):
            middle = (low + high) / 2
            found = self._path(middle)
            if found is None:
                low = middle
            else:
                high, best = middle, found
        return best

    def _path(self, peak: float) -> tuple[Cut, ...] | None:
        """The cuts that keep to a peak and compute the least again; None if there are none."""
        n = len(self.cuts)
        carried = np.full(n, np.inf)  # least bytes of all boundaries up to this one
        carried[0] = 0
        before = [0] * n
        for j in range(1, n - 1):
            fits = carried[:j] + self.inside[:j, j] + self.working[:j, j] <= peak
            cost = np.where(fits, carried[:j] + self.added[:j, j], np.inf)
            before[j] = int(cost.argmin())
            carried[j] = cost[before[j]]
        last = carried[:-1] + self.inside[:-1, -1] + self.working[:-1, -1] <= peak
        if not last.any():
            return None
        return self._backwards(int(last.argmax()), lambda j, _: before[j], n)

    def with_segments(self, count: int) -> tuple[Cut, ...]:
        """The cuts into this many segments with the lowest peak; fewer if there are fewer places."""
        count = min(count, len(self.cuts) - 1)
        low, high = 0.0, float(self.inside[0, -1] + self.working[0, -1] + np.ma.masked_invalid(self.added).sum())
        best: tuple[Cut, ...] = ()
        for _ in range(2 * STEPS):
            middle = (low + high) / 2
            found = self._path_of(count, middle)
            if found is None:
                low = middle
            else:
                high, best = middle, found
        return best

    def _path_of(self, count: int, peak: float) -> tuple[Cut, ...] | None:
        """As :meth:`_path`, with this many segments."""
        n = len(self.cuts)
        carried = np.full(n, np.inf)
        carried[0] = 0
        before: list[list[int]] = []
        own = np.triu(np.ones((n, n), dtype=bool), 1)
        for _ in range(count - 1):
            total = carried[:, None]
            fits = own & (total + self.inside + self.working <= peak)
            cost = np.where(fits, total + self.added, np.inf)
            before.append(cost.argmin(0).tolist())
            carried = cost.min(0)
            carried[-1] = np.inf
        last = carried[:-1] + self.inside[:-1, -1] + self.working[:-1, -1] <= peak
        if not last.any():
            return None
        start = int(last.argmax())
        return self._backwards(start, lambda j, step: before[-1 - step][j], count)

    def _backwards(self, last: int, before: Callable[[int, int], int], most: int) -> tuple[Cut, ...]:
        found = []
        for step in range(most):
            if last == 0:
                break
            found.append(self.cuts[last])
            last = before(last, step)
        return tuple(reversed(found))


def _places(lines: _Lines) -> tuple[list[Cut], list[float]]:
    """The cuts worth considering: where the bytes carried have a minimum; and the bytes at every position."""
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for index, (made, until, _, _) in enumerate(lines.spans):
        starting.setdefault(made + 1, []).append(index)
        ending.setdefault(until + 1, []).append(index)
    level: list[float] = [0.0] * (lines.end + 1)
    now = 0.0
    for at in range(lines.end + 1):
        now += sum(lines.spans[i][3] for i in starting.get(at, ())) - sum(lines.spans[i][3] for i in ending.get(at, ()))
        level[at] = now
    changed = sorted({at for at in (*starting, *ending) if 0 < at < lines.end})
    minima = [
        at for before, at, after in zip([0, *changed], changed, [*changed[1:], lines.end], strict=False)
        if level[at] <= level[before] and level[at] <= level[after] and level[at] > 0 and at not in lines.closed
    ]  # fmt: skip
    if len(minima) > MOST_CUTS:
        minima = sorted(sorted(minima, key=lambda at: (level[at], at))[:MOST_CUTS])
    return [Cut(at, _carried(lines, at)) for at in minima], level


def _carried(lines: _Lines, at: int) -> tuple[fx.Node, ...]:
    return tuple(node for made, until, node, _ in lines.spans if made < at <= until)
