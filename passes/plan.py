"""Which values to store, and how: a minimum cut over encoded sizes.

Each forward value can be had in backward at two levels, exact or approximate; an exact copy serves as an approximate
one. It is had by storing it (which costs the bytes of its encoded form), by recomputing it (free, if its operator is
cheap, and then its operands are asked for), or because it is alive anyway. The stored set is the cheapest cut between
what forward has and what backward needs; parts of the graph that share no recomputation are cut one by one.

A decision (mask, index, sign) is stored without loss, unless the code of another stored value carries it.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov

from fxapprox.activation import CLASS_OF_USE, LEAST_BITS, Activation, Affine, Class, Plan, Stored, Use
from fxapprox.codecs import Carrier, Codec, Copy, Exact, Group, Integer, Mask, Standard, Threshold, Zero
from fxapprox.errors import OptionError, UnsupportedGraph
from fxapprox.options import PROVISIONAL_BITS, Options
from fxapprox.sizes import evaluate

SOURCE, SINK = "source", "sink"
EXACT, APPROXIMATE = "exact", "approximate"

Values = Mapping[str, Activation]
Place = tuple[str, str, str]  # in the flow network: name, level, "in" or "out"


def plan(activations: tuple[Activation, ...], options: Options, *, hints: Mapping[str, int] | None = None) -> Plan:
    """Chooses what is stored for backward and in which codec.

    Where sizes are symbolic, bytes are expressions, and the choice is made for the hints.

    Requires: the Activations of one joint graph, and a hint for each symbol in their sizes.
    Ensures: everything backward reads is free, stored, or recomputable from what is; every decision it reads is
        stored without loss or carried by a code; nothing sensitive is approximate.
    Changes numerics: no graph is touched.

    Raises:
        UnsupportedGraph: a value can be neither saved nor recomputed.
        OptionError: the user's policy returned something that is not a codec.
    """
    problem = _Problem.of(activations, options, hints or {})
    return _plan_of(problem, *_cut(problem))


def plan_storing(
    activations: tuple[Activation, ...],
    options: Options,
    hints: Mapping[str, int],
    codecs: Mapping[str, Codec],
) -> Plan:
    """The plan that stores these values in these codecs, instead of those of the cheapest cut.

    Values that backward needs not are left out; bits and policy of the options are not asked.

    Raises:
        UnsupportedGraph: backward needs more than these.
    """
    lossless = {name for name, codec in codecs.items() if codec.lossless}
    chosen = {name: codec for name, codec in codecs.items() if not isinstance(codec, (Mask, Integer))}
    given = replace(options, bits=PROVISIONAL_BITS, policy=lambda value: chosen.get(value.name))
    return _plan_of(_Problem.of(activations, given, hints), lossless, set(codecs.keys() - lossless))


def _plan_of(problem: _Problem, exact: set[str], approximate: set[str]) -> Plan:
    need = _resolve(problem, exact, approximate)
    kinds = _kinds(problem, need)
    stored = tuple(_store(name, problem, need, kinds) for name in problem.values if name in need.stored)
    recomputed = tuple(name for name in problem.values if name in need.recomputed)
    clamps = [(name, problem.values[name].clamp) for name in recomputed if need.level[name] == APPROXIMATE]
    return Plan(stored, recomputed, tuple((name, clamp) for name, clamp in clamps if clamp is not None))


# --- the problem ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """The values, bits by module, the codecs that the user's policy fixed, and whose code carries a decision.

    ``hints`` are the numbers that symbolic sizes have while the plan is made.
    """

    values: Values
    options: Options
    bits: Mapping[str, int | None]
    fixed: Mapping[str, Codec]
    carriers: Mapping[str, Affine]
    hints: Mapping[str, int]

    @classmethod
    def of(cls, activations: tuple[Activation, ...], options: Options, hints: Mapping[str, int]) -> _Problem:
        values = {a.name: a for a in activations}
        bits = {module: options.bits_of(module) for module in {a.module for a in activations}}
        for name, value in values.items():
            if value.approximable and bits[value.module] is None:
                values[name] = replace(value, approximable=False, reason=f"{value.reason}; exact by option bits")
        fixed = _ask_policy(values, options)
        for name, codec in fixed.items():
            if isinstance(codec, Exact):
                values[name] = replace(values[name], approximable=False, reason="kept exact by the policy")
        carriers: dict[str, Affine] = {}
        for name, value in values.items():
            affine = value.embedded
            if affine is None:
                continue
            root = values[affine.root]
            able = root.approximable and not root.kept and isinstance(fixed.get(root.name, Threshold()), Carrier)
            first = carriers.get(root.name, affine)
            if able and first.agrees_with(affine):
                carriers[root.name] = first if first.ties_above is not None else affine
            else:  # a code carries one threshold; any other decision is stored by itself
                values[name] = replace(value, embedded=None)
        return cls(values, options, bits, fixed, carriers, hints)

    def carried(self, value: Activation, level: str) -> bool:
        """Whether another value's code gives this decision, or lets this rectifier be run again."""
        return (
            value.embedded is not None
            and value.embedded.root != value.name
            and (level == APPROXIMATE or not value.is_float)
        )

    def recomputable(self, value: Activation, level: str) -> bool:
        """Whether backward can run the value's operator again at this level."""
        if self.carried(value, level):
            return True
        # the code that carries a decision has to be the value's own, so an approximate carrier is always stored
        return value.recomputable and not (level == APPROXIMATE and value.name in self.carriers)

    def recipe(self, value: Activation, level: str) -> Iterator[tuple[str, str]]:
        """(operand, level) of everything that recomputing the value reads."""
        if self.carried(value, level):
            assert value.embedded is not None
            yield value.embedded.root, APPROXIMATE
            if not value.is_float:
                return
        if value.clamp is not None and level == APPROXIMATE:
            yield value.clamp.operand, APPROXIMATE
            yield value.clamp.predicate, EXACT
            return
        for operand in value.operands:
            carried = self.carried(value, level) and operand.use == Use.DECISION
            exact = level == EXACT or (operand.exact and not carried)
            yield operand.name, EXACT if exact else APPROXIMATE

    def cost(self, value: Activation, level: str) -> float | None:
        """Bytes of storing at a level, beyond what the level below costs; None if it cannot be stored."""
        if not value.storable:
            return None
        if value.kind is Class.DISCRETE:
            return max(self.bytes(_lossless(value), value), 1)
        whole = max(value.nbytes, 8)
        if not value.approximable:
            return whole
        encoded = self.bytes(self.codec(value, value.kind), value)
        return encoded if level == APPROXIMATE else max(whole - encoded, 1)

    def bytes(self, codec: Codec, value: Activation) -> int:
        """Bytes of the value in the codec, at the hints."""
        return evaluate(codec.nbytes(value.sizes, value.dtype), self.hints)

    def codec(self, value: Activation, kind: Class) -> Codec:
        """The codec of a value of which an approximate copy will do."""
        if value.kept:
            return Copy() if value.partial else Exact()
        given = self.fixed.get(value.name)
        if given is not None and self._fits(given, value):
            return given
        bits = given.bits if given is not None else self.bits[value.module]
        assert bits is not None
        bits = bits if given is not None else max(bits, LEAST_BITS.get(kind, 8))
        if value.name in self.carriers:
            return Zero(bits) if self._rectified(value) else Threshold(bits)
        return self._plain_codec(value, kind, bits)

    def _fits(self, codec: Codec, value: Activation) -> bool:
        """Whether a codec that asks something of the value can have it: a decision to carry, or statistics."""
        if isinstance(codec, Standard):
            return value.moments is not None
        if isinstance(codec, (Threshold, Zero)):
            return value.name in self.carriers and (self._rectified(value) or isinstance(codec, Threshold))
        return True

    def _rectified(self, value: Activation) -> bool:
        """Whether the value is a rectifier's output, and the decision is that it is not zero."""
        affine = self.carriers[value.name]
        return not affine.steps and affine.threshold == 0 and value.nonnegative

    def _plain_codec(self, value: Activation, kind: Class, bits: int) -> Codec:
        """The codec of a value that carries no decision."""
        rounding, uniform = self.options.rounding, kind is Class.SOFTMAX or value.nonnegative
        if value.moments and kind in (Class.LINEAR, Class.SMOOTH) and rounding == "nearest" and not uniform:
            return Standard(bits)
        skewed = value.weights and rounding == "nearest"
        group = Group(bits, rounding, uniform=uniform and not skewed, skewed=skewed)
        return group if self.bytes(group, value) < value.nbytes else Exact()  # groups do not cross symbolic sizes


def _ask_policy(values: Values, options: Options) -> dict[str, Codec]:
    """The user's choices, for every value that may be approximate."""
    if options.policy is None:
        return {}
    fixed = {}
    for value in values.values():
        codec = options.policy(value) if value.approximable and not value.kept else None
        if codec is None:
            continue
        if not isinstance(codec, Codec):
            raise OptionError(f"policy returned {codec!r} for {value.name}: expected a codec or None")
        if isinstance(codec, (Mask, Integer)):
            raise OptionError(f"policy returned {codec.label!r} for {value.name}: it holds no {value.dtype}")
        fixed[value.name] = codec
    return fixed


# --- the cut -------------------------------------------------------------------------------------


def _cut(problem: _Problem) -> tuple[set[str], set[str]]:
    """The cheapest values to store, exactly and approximately; one connected part of the problem at a time."""
    network = _network(problem)
    order = {place: i for i, place in enumerate(network.graph)}
    cuts: dict[Hashable, list[int]] = {}  # equal layers make equal parts: each kind is cut once
    exact: set[str] = set()
    approximate: set[str] = set()
    for part in nx.weakly_connected_components(network.graph):
        if part.isdisjoint(network.sources):
            continue  # recomputed from free values alone
        places = sorted(part, key=order.__getitem__)
        kind = _kind_of(places, network)
        if kind not in cuts:
            cuts[kind] = _cut_part(places, network, problem.values)
        for i in cuts[kind]:
            name, level, _ = places[i]
            (exact if level == EXACT else approximate).add(name)
    return exact, approximate - exact


def _kind_of(places: Sequence[Place], network: _Network) -> Hashable:
    """All that a part's cut depends on: its places by number, not by name, their edges and capacities."""
    number = {place: i for i, place in enumerate(places)}
    values: dict[str, int] = {}
    kind = []
    for place in places:
        name, level, side = place
        ends = place in network.sources, place in network.sinks
        edges = tuple((number[to], data.get("capacity")) for to, data in network.graph.succ[place].items())
        kind.append((values.setdefault(name, len(values)), level, side, ends, edges))
    return tuple(kind)


def _cut_part(places: Sequence[Place], network: _Network, values: Values) -> list[int]:
    """Numbers of the places where the cheapest cut of one part stores a value."""
    piece = nx.DiGraph(network.graph.out_edges(places, data=True))
    piece.add_edges_from((SOURCE, place) for place in places if place in network.sources)
    piece.add_edges_from((place, SINK) for place in places if place in network.sinks)
    try:
        # on a handful of nodes networkx's default, preflow-push, spends its time on preparations
        _, (have, _) = nx.minimum_cut(piece, SOURCE, SINK, flow_func=boykov_kolmogorov)
    except nx.NetworkXUnbounded:
        raise _impossible(piece, values) from None
    return [
        i for i, (name, level, side) in enumerate(places)
        if side == "in" and (name, level, "in") in have and (name, level, "out") not in have
    ]  # fmt: skip


@dataclass(frozen=True)
class _Network:
    """The flow network, grown backward from what backward reads; a missing capacity is infinite.

    A value has two pairs of nodes: (name, level, "out") is on the sink's side if backward needs it at that level,
    (name, level, "in") if backward has to recompute it. Cutting in -> out is storing.

    Attributes:
        graph: the network without the source and the sink, so that it falls apart where it can.
        sources: what cannot be recomputed: the source leads there.
        sinks: what backward's own operators read: it leads to the sink.
    """

    graph: nx.DiGraph
    sources: set[Place]
    sinks: set[Place]


def _network(problem: _Problem) -> _Network:
    network = _Network(nx.DiGraph(), set(), set())
    graph = network.graph
    stack: list[tuple[Activation, str]] = []

    def place(name: str, level: str) -> Place | None:
        """Where backward gets the value at this level; None if it is alive anyway."""
        value = problem.values[name]
        if value.free:
            return None
        level = level if value.approximable else EXACT
        if (name, level, "out") not in graph:
            graph.add_node((name, level, "out"))
            stack.append((value, level))
        return name, level, "out"

    for value in problem.values.values():
        if value.demand is not None:
            asked = place(value.name, EXACT if value.demand >= Use.SENSITIVE else APPROXIMATE)
            network.sinks.update([asked] if asked is not None else ())
    while stack:
        value, level = stack.pop()
        inside, outside = (value.name, level, "in"), (value.name, level, "out")
        cost = problem.cost(value, level)
        graph.add_edge(inside, outside, **({} if cost is None else {"capacity": cost}))
        if level == EXACT and value.approximable:
            # an exact copy is an approximate one too: storing it cuts both pairs
            graph.add_edge(place(value.name, APPROXIMATE), outside)
            graph.add_edge((value.name, APPROXIMATE, "in"), inside)
        if not problem.recomputable(value, level):
            network.sources.add(inside)
            continue
        for name, needed in problem.recipe(value, level):
            operand = place(name, needed)
            if operand is not None:
                graph.add_edge(operand, inside)
    return network


def _impossible(piece: nx.DiGraph, values: Values) -> UnsupportedGraph:
    for name, _, _ in piece.succ[SOURCE]:
        value = values[name]
        if not value.storable:
            why = f"can be neither saved (not a tensor) nor recomputed ({value.pinned})"
            return UnsupportedGraph("plan", why, node=name, source=value.source)
    return UnsupportedGraph("plan", "no finite cut between forward and backward")


# --- what the cut means --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Need:
    """How backward gets each value it reads: the level it needs, and who asks."""

    level: Mapping[str, str]
    stored: frozenset[str]
    recomputed: frozenset[str]
    carried: Mapping[str, tuple[str, ...]]
    readers: Mapping[str, list[tuple[str | None, Use]]]


def _resolve(problem: _Problem, exact: set[str], approximate: set[str]) -> _Need:
    """Walks from what backward reads to what is stored; what the walk does not meet is not stored."""
    values = problem.values
    rank = {name: -i for i, name in enumerate(values)}
    level: dict[str, str] = {}
    readers: dict[str, list[tuple[str | None, Use]]] = {}
    heap: list[tuple[int, str]] = []
    stored, recomputed = set[str](), set[str]()
    carried: dict[str, list[str]] = {}

    def want(name: str, wanted: str, reader: str | None, use: Use) -> None:
        if name not in level:
            heapq.heappush(heap, (rank[name], name))
        level[name] = EXACT if EXACT in (wanted, level.get(name)) or not values[name].approximable else APPROXIMATE
        readers.setdefault(name, []).append((reader, use))

    for value in values.values():
        if value.demand is not None:
            want(value.name, EXACT if value.demand >= Use.SENSITIVE else APPROXIMATE, None, value.demand)
    while heap:
        _, name = heapq.heappop(heap)  # readers come later in the graph, so they have all been asked
        value = values[name]
        if value.free:
            continue
        root = value.embedded.root if problem.carried(value, level[name]) and value.embedded else None
        rides = root in approximate and level.get(root, APPROXIMATE) == APPROXIMATE
        if name in exact or name in approximate or (root and not rides and not value.is_float):
            level[name] = EXACT if name in exact else level[name]
            stored.add(name)
            continue
        if root is not None and rides:
            want(root, APPROXIMATE, name, Use.LINEAR)
            carried.setdefault(root, []).append(name)
            if not value.is_float:
                continue
        elif not value.recomputable:
            why = f"needed in backward but not stored ({value.pinned})"
            raise UnsupportedGraph("plan", why, node=name, source=value.source)
        recomputed.add(name)
        if value.clamp is not None and level[name] == APPROXIMATE:
            want(value.clamp.operand, APPROXIMATE, name, Use.LINEAR)
            want(value.clamp.predicate, EXACT, None, Use.DECISION)  # it may come later in the graph than its reader
            continue
        for operand in value.operands:
            decided = rides and operand.use == Use.DECISION
            strict = level[name] == EXACT or (operand.exact and not decided)
            want(operand.name, EXACT if strict else APPROXIMATE, name, Use.LINEAR if decided else operand.use)
    return _Need(level, frozenset(stored), frozenset(recomputed), {k: tuple(v) for k, v in carried.items()}, readers)


def _kinds(problem: _Problem, need: _Need) -> dict[str, Class]:
    """The class of each stored value, from what really is recomputed from it."""
    strictest: dict[str, Use] = {}
    for name in reversed(list(problem.values)):
        value = problem.values[name]
        use = Use.SOFTMAX if value.kind is Class.SOFTMAX and value.reason == "output of a softmax" else Use.LINEAR
        for reader, how in need.readers.get(name, ()):
            through = strictest[reader] if reader in need.recomputed and reader is not None else Use.LINEAR
            use = max(use, through, how if how < Use.SENSITIVE else Use.LINEAR)
        strictest[name] = use
    return {
        name: CLASS_OF_USE[strictest[name]] if problem.values[name].approximable else problem.values[name].kind
        for name in need.stored
    }


def _store(name: str, problem: _Problem, need: _Need, kinds: Mapping[str, Class]) -> Stored:
    value, kind = problem.values[name], kinds[name]
    if need.level[name] == EXACT or not value.approximable:
        codec = _lossless(value)
        reason = value.reason if not value.approximable else "backward needs it exactly as well"
        return Stored(name, codec, kind, codec.nbytes(value.sizes, value.dtype), reason)
    codec = problem.codec(value, kind)
    carried = tuple(sorted(need.carried.get(name, ()), key=lambda p: problem.values[p].is_float))
    if not carried and isinstance(codec, Carrier):
        codec = replace(problem, carriers={}).codec(value, kind)
    return Stored(
        name, codec, kind, codec.nbytes(value.sizes, value.dtype), value.kept or value.reason,
        affine=problem.carriers[name] if carried else None,
        moments=value.moments if isinstance(codec, Standard) else None,
        carried=carried,
        predicates=tuple(p for p in carried if not problem.values[p].is_float),
    )  # fmt: skip


def _lossless(value: Activation) -> Codec:
    """The smallest storage that loses nothing."""
    exact = Copy() if value.partial else Exact()
    if value.dtype is None or value.kept:
        return exact
    if str(value.dtype) == "torch.bool":
        return Mask()
    if value.span is not None:
        narrow = Integer(*value.span)
        return narrow if narrow.bits < value.dtype.itemsize * 8 else exact
    return exact
