"""Which loops Inductor makes one kernel of, and which values need no memory then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile

from fxapprox.memory.kernels import Kernel, Operation, Value

DISTANT = 64  # loops so far apart that share no result are not made one


def fuse(operations: Sequence[Operation], returned: set[int]) -> list[Kernel]:
    """Loops that share a value become one kernel, the values in one loop alone get no memory.

    Neighbours do; and a loop goes back to one before external kernels where all that it reads was there already. Those
    of a slice do so among themselves.
    """
    groups: list[list[Operation]] = []
    open_groups: list[tuple[list[Operation], set[Value]]] = []  # those that may still grow, and what they touch
    made_in: dict[int, int] = {}  # values of closed groups
    touched_in: dict[int, set[int]] = {}  # by closed groups that make or read them

    def close(group: list[Operation]) -> None:
        for operation in group:
            note(operation, len(groups))
        groups.append(group)

    def note(operation: Operation, at: int) -> None:
        made_in.update((id(v), at) for v in operation.makes)
        for value in (*operation.reads, *operation.makes):
            touched_in.setdefault(id(value), set()).add(at)

    def earlier(operation: Operation, following: Iterable[Operation]) -> int | None:
        """The closed group with which this loop can be one and shares most, if that is more than with those ahead."""
        made = max((made_in.get(id(v), -1) for v in operation.reads), default=-1)
        near = range(max(made, len(groups) - DISTANT, 0), len(groups))
        shared = {
            at: _shared(operation, groups[at])
            for at in {made, *near} - {-1}
            if any(at in touched_in.get(id(v), ()) for v in operation.reads)
            and any(o.rows and o.part == operation.part and _one_loop(operation.rows, o.rows) for o in groups[at])
        }
        ahead = _fitting(operation, takewhile(lambda o: o.rows and o.part == operation.part, following))
        most = max((_shared(operation, [o]) for o in ahead), default=0)
        best = max(shared, key=lambda at: (shared[at], at), default=None)
        return best if best is not None and shared[best] > most else None

    for i, operation in enumerate(operations):
        if not operation.rows or (i and operation.part != operations[i - 1].part):
            for group, _ in open_groups:
                close(group)
            open_groups = []
        if not operation.rows:
            close([operation])
            continue
        touched = {*operation.reads, *operation.makes}
        related = [pair for pair in open_groups if not touched.isdisjoint(pair[1])]
        if not related and (at := earlier(operation, islice(operations, i + 1, None))) is not None:
            groups[at].append(operation)
            note(operation, at)
            continue
        open_groups = [pair for pair in open_groups if touched.isdisjoint(pair[1])]
        open_groups.append(([*(o for g, _ in related for o in g), operation], touched.union(*(t for _, t in related))))
    for group, _ in open_groups:
        close(group)
    return [
        _kernel(group, {id(v) for o in group for v in o.makes if touched_in[id(v)] <= {at}} - returned)
        for at, group in enumerate(groups)
    ]


def _fitting(operation: Operation, following: Iterable[Operation]) -> Iterator[Operation]:
    """Those of the loops that follow which may be one with a loop: not what needs sums of its results first."""
    across = _is_over_channels(operation)
    after_sums: set[Value] = set()
    derived = {*operation.makes}
    for other in following:
        if not after_sums.isdisjoint(other.reads):
            after_sums.update(other.makes)
            continue
        if not derived.isdisjoint(other.reads):
            (after_sums if other.reduces else derived).update(other.makes)
        if not (across and other.reduces):
            yield other


def _shared(operation: Operation, group: Sequence[Operation]) -> int:
    """Bytes that an operation reads or makes, and a group as well."""
    touched = {v for o in group for v in (*o.reads, *o.makes)}
    return sum(v.elements * v.dtype.itemsize for v in {*operation.reads, *operation.makes} & touched)


def _kernel(group: list[Operation], private: set[int]) -> Kernel:
    """One kernel; ``private`` values are read inside it only."""
    first = group[0]
    if not first.rows:
        return Kernel(first.name, first.makes, first.reads, external=True, scratch=first.scratch, part=first.part)
    made_by = {id(v): o for o in group for v in o.makes}
    level: dict[int, int] = {}
    for operation in group:
        sources = [made_by[id(v)] for v in operation.reads if id(v) in made_by]
        level[id(operation)] = max((level[id(s)] + s.reduces for s in sources), default=0)
    readers: dict[int, list[Operation]] = {}
    for operation in group:
        for value in operation.reads:
            readers.setdefault(id(value), []).append(operation)

    def in_one_loop(o: Operation, reader: Operation) -> bool:
        if reader.reduces and _is_over_channels(o):
            return False
        return level[id(o)] == level[id(reader)] and _one_loop(o.rows, reader.rows)

    makes = tuple(
        v
        for o in group
        for v in o.makes
        if o.reduces or id(v) not in private or not all(in_one_loop(o, r) for r in readers.get(id(v), ()))
    )
    reads = frozenset(v for o in group for v in o.reads if id(v) not in made_by)
    place = {id(o): at for at, o in enumerate(group)}

    def reads_last(o: Operation, value: Value) -> bool:
        others = (r for r in readers[id(value)] if r is not o)
        return all(place[id(r)] < place[id(o)] and not in_one_loop(r, o) for r in others)

    whole = {v: frozenset(w for w in o.whole if reads_last(o, w)) for o in group for v in o.makes}
    return Kernel(group[-1].name, makes, reads, whole, part=first.part)


def _is_over_channels(operation: Operation) -> bool:
    """Whether its innermost loop is over channels, which is none over pixels, as sums of images are."""
    return any(v.channels_last for v in operation.makes)


def _one_loop(a: frozenset[int], b: frozenset[int]) -> bool:
    """Whether two loop nests are one, up to merging dimensions: (3, 4, 5) and (12, 5), but not (10, 6).

    Two images over different dimensions are, where merging leaves three: (16, 16, 32, 32) and (16, 2, 8, 1024).
    """
    return max(a) == max(b) and (a <= b or b <= a or len(a & b) > 3)
