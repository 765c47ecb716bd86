"""The cheapest set of values to store: a minimum cut between what forward has and what backward needs.

A value has two pairs of nodes in the flow network: (name, level, "out") is on the sink's side if backward needs it at
that level, (name, level, "in") if backward has to recompute it. Cutting in -> out is storing. An exact copy is an
approximate one too. So an exact copy beside an approximate one costs what it has more; but beside one that is
recomputed it costs all its bytes. No cut can tell these two apart, so there are two networks to choose from:
``apart`` or not, exact copies cost all their bytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov
from networkx.utils import UnionFind

from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.records import Activation, Use
from fxapprox.planning.problem import APPROXIMATE, EXACT, Level, Problem

SOURCE, SINK = "source", "sink"

Place = tuple[str, Level, str]  # in the flow network: name, level, "in" or "out"


@dataclass(frozen=True)
class Network:
    """The flow network of a problem, grown backward from what backward reads; a missing capacity is infinite.

    Attributes:
        problem: whose network it is.
        graph: the network without the source and the sink, so that it falls apart where it can.
        sources: what cannot be recomputed: the source leads there.
        sinks: what backward's own operators read: it leads to the sink.
    """

    problem: Problem
    graph: nx.DiGraph
    sources: set[Place]
    sinks: set[Place]


def network(problem: Problem, *, apart: bool = False) -> Network:
    """The flow network of a problem.

    Args:
        apart: see the module.
    """
    found = Network(problem, nx.DiGraph(), set(), set())
    graph, values = found.graph, problem.values
    certain = _certainly_exact(problem)
    stack: list[tuple[Activation, Level]] = []

    def place(name: str, level: Level) -> Place | None:
        """Where backward gets the value at this level; None if it is alive anyway."""
        value = values[name]
        if value.free:
            return None
        level = EXACT if name in certain or not value.approximable else level
        if (name, level, "out") not in graph:
            graph.add_node((name, level, "out"))
            stack.append((value, level))
        return name, level, "out"

    for value in values.values():
        if value.demand is not None:
            asked = place(value.name, level_of(value.demand))
            found.sinks.update([asked] if asked is not None else ())
    while stack:
        value, level = stack.pop()
        inside: Place = (value.name, level, "in")
        outside: Place = (value.name, level, "out")
        cost = problem.cost(value, level)
        both = level == EXACT and value.approximable and value.name not in certain
        if both and cost is not None and not apart:
            cost = max(cost - (problem.cost(value, APPROXIMATE) or 0), 1)
        graph.add_edge(inside, outside, **({} if cost is None else {"capacity": cost}))
        if both:
            # an exact copy is an approximate one too: storing it cuts both pairs
            graph.add_edge(place(value.name, APPROXIMATE), outside)
            graph.add_edge((value.name, APPROXIMATE, "in"), inside)
        if not problem.recomputable(value, level):
            found.sources.add(inside)
            continue
        for name, needed, _ in problem.sources(value, level):
            operand = place(name, needed)
            if operand is not None:
                graph.add_edge(operand, inside)
    return found


def level_of(demand: Use) -> Level:
    """The level at which backward needs a value that it reads so."""
    return EXACT if demand >= Use.SENSITIVE else APPROXIMATE


def _certainly_exact(problem: Problem) -> set[str]:
    """Values of which backward needs an exact copy whatever is stored: an approximate one beside it is of no use."""
    found: set[str] = set()
    asked = ((value.name, value.demand) for value in problem.values.values() if value.demand is not None)
    stack = [name for name, demand in asked if level_of(demand) == EXACT]
    while stack:
        value = problem.values[stack.pop()]
        if value.name in found or value.free:
            continue
        found.add(value.name)
        if problem.cost(value, EXACT) is None and problem.recomputable(value, EXACT):
            stack += (name for name, level, _ in problem.sources(value, EXACT) if level == EXACT)
    return found


def parts_of(networks: Sequence[Network]) -> Iterator[tuple[list[Place], ...]]:
    """The places of each network, in its order, that have to be decided on together: they are connected in one."""
    together: UnionFind = UnionFind()
    for each in networks:
        for component in nx.weakly_connected_components(each.graph):
            together.union(*dict.fromkeys(name for name, _, _ in component))
    places: dict[str, tuple[list[Place], ...]] = {}
    for index, each in enumerate(networks):
        for place in each.graph:
            places.setdefault(together[place[0]], tuple([] for _ in networks))[index].append(place)
    yield from places.values()


def kind_of(places: Sequence[Place], network: Network) -> Hashable:
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


def cut(places: Sequence[Place], network: Network) -> list[Place]:
    """The places ("in") where the cheapest cut of one part stores a value.

    Raises:
        UnsupportedGraph: a value can be neither saved nor recomputed.
    """
    if network.sources.isdisjoint(places):
        return []  # recomputed from free values alone
    piece = nx.DiGraph(network.graph.out_edges(places, data=True))
    piece.add_edges_from((SOURCE, place) for place in places if place in network.sources)
    piece.add_edges_from((place, SINK) for place in places if place in network.sinks)
    try:
        # on a handful of nodes networkx's default, preflow-push, spends its time on preparations
        _, (have, _) = nx.minimum_cut(piece, SOURCE, SINK, flow_func=boykov_kolmogorov)
    except nx.NetworkXUnbounded:
        raise _impossible(piece.succ[SOURCE], network.problem) from None
    return [
        (name, level, side) for name, level, side in places
        if side == "in" and (name, level, "in") in have and (name, level, "out") not in have
    ]  # fmt: skip


def _impossible(sources: Iterable[Place], problem: Problem) -> UnsupportedGraph:
    for name, level, _ in sources:
        value = problem.values[name]
        if problem.cost(value, level) is None:
            why = f"backward needs it; it cannot be saved, and not be recomputed ({value.pinned})"
            return UnsupportedGraph("plan", why, node=name, source=value.source)
    return UnsupportedGraph("plan", "no finite cut between forward and backward")
