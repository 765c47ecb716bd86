"""Which values to store, and how: the cheapest of several minimum cuts over encoded sizes.

The stored set is the cheapest cut between what forward has and what backward needs (``cut.py``), where storing a value
costs the bytes of its encoded form (``problem.py``). Parts of the graph that share no recomputation are cut one by one.
A cut does not know all that counts, so there are several for each part, and the one that stores least is taken: among
them that of exact mode, and those for more bits, so that fewer bits never store more.

A decision (mask, index, sign) is stored without loss, unless the code of another stored value carries it, or it can be
taken again from the very bits that forward took it from.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from fxapprox.bits import OFFERED, PROVISIONAL
from fxapprox.codecs import Carrier, Codec, Copy, Integer, Mask, Need
from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.records import CLASS_OF_USE, Activation, Class, Plan, Stored, Use
from fxapprox.options import Options
from fxapprox.planning.cut import Network, Place, cut, kind_of, level_of, network, parts_of
from fxapprox.planning.problem import APPROXIMATE, EXACT, Level, Problem, lossless_codec, stored_bytes
from fxapprox.sizes import evaluate

Sets = tuple[frozenset[str], frozenset[str]]  # values to store exactly, and approximately


def plan(activations: tuple[Activation, ...], options: Options, *, hints: Mapping[str, int] | None = None) -> Plan:
    """Chooses what is stored for backward and in which codec.

    Where sizes are symbolic, bytes are expressions, and the choice is made for the hints.

    Requires: the Activations of one joint graph, and a hint for each symbol in their sizes.
    Ensures: everything backward reads is free, stored, or recomputable from what is; every decision it reads is
        stored without loss, carried by a code, or taken again from the same bits; nothing sensitive is approximate;
        no more is stored than in exact mode, or with more bits.
    Changes numerics: no graph is touched.

    Raises:
        UnsupportedGraph: a value can be neither saved nor recomputed.
        OptionError: the user's policy returned something that is not a codec.
    """
    alternatives = _alternatives(activations, options, hints or {})
    found = _plan_of(*_cheapest(alternatives))
    _tell_misfits(alternatives[0].problem, found)
    return found


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
    exact = frozenset(name for name, codec in codecs.items() if codec.lossless)
    chosen = {name: codec for name, codec in codecs.items() if not isinstance(codec, (Mask, Integer))}
    given = replace(options, bits=PROVISIONAL, policy=lambda value: chosen.get(value.name))
    problem, approximate = Problem.of(activations, given, hints), frozenset(codecs) - exact
    return _plan_of(problem.without_carriers(problem.carriers.keys() - approximate), (exact, approximate))


def _plan_of(problem: Problem, sets: Sets) -> Plan:
    need = _resolve(problem, sets, problem.values)
    kinds = _kinds(problem, need)
    stored = tuple(_store(name, problem, need, kinds) for name in problem.values if name in need.stored)
    recomputed = tuple(name for name in problem.values if name in need.recomputed)
    inexact = [problem.values[name] for name in recomputed if need.level[name] == APPROXIMATE]
    ceilings = tuple((value.name, value.ceiling) for value in inexact if value.ceiling is not None)
    # where backward takes the decision again, it has the operand exactly
    decided = need.stored.union(*need.carried.values())
    clamps = tuple((v.name, v.clamp) for v in inexact if v.clamp is not None and v.clamp.predicate in decided)
    return Plan(stored, recomputed, clamps, ceilings)


def _tell_misfits(asked: Problem, plan: Plan) -> None:
    """Warns of stored values for which the user's policy chose a codec that asks for what they lack."""
    misfits = []
    for entry in plan.stored:
        given, value = asked.fixed.get(entry.name), asked.values[entry.name]
        if given is not None and (lacks := asked.lacks(given, value)):
            place = f" in {value.module}" if value.module else ""
            how = f"is stored as {entry.codec.text}, not as {given.text}"
            misfits.append(f"{entry.name}{place} {how}: it lacks {lacks}")
    if misfits:
        warnings.warn(f"fxapprox: what the policy chose does not fit: {'; '.join(misfits)}", stacklevel=2)


# --- several cuts, and the cheapest of each part -------------------------------------------------


@dataclass(frozen=True)
class _Alternative:
    """One way to choose the stored set: where to cut, and the problem that the cut's values are then stored for."""

    network: Network
    problem: Problem


def _alternatives(
    activations: tuple[Activation, ...], options: Options, hints: Mapping[str, int]
) -> list[_Alternative]:
    """The ways to choose, first what the options ask for."""
    asked = Problem.of(activations, options, hints)
    found = _cuts_of(asked, asked)
    if isinstance(options.bits, int):
        for bits in (more for more in OFFERED if more > options.bits):
            found += _cuts_of(Problem.of(activations, replace(options, bits=bits), hints), asked)
    if any(value.approximable for value in asked.values.values()):
        exact = asked.with_exact(asked.values.keys() - asked.fixed.keys(), "fewer bytes exactly than in codes")
        found += _cuts_of(exact, exact)
    return found


def _cuts_of(cutting: Problem, storing: Problem) -> list[_Alternative]:
    """The cuts for one number of bits.

    An approximate value whose code carries a decision is always stored. Where backward could recompute it from less,
    storing the decision by itself may be cheaper.
    """
    avoidable = frozenset(root for root in cutting.carriers if cutting.values[root].recomputable)
    pairs = [(cutting, storing)]
    if avoidable:
        pairs.append((cutting.without_carriers(avoidable), storing.without_carriers(avoidable)))
    found = []
    for cut_for, stored_for in pairs:
        shared = network(cut_for)
        found.append(_Alternative(shared, stored_for))
        if any(level == EXACT and (name, APPROXIMATE, "in") in shared.graph for name, level, _ in shared.graph):
            found.append(_Alternative(network(cut_for, apart=True), stored_for))
    return found


def _cheapest(alternatives: Sequence[_Alternative]) -> tuple[Problem, Sets]:
    """The problem and the values to store, of the alternative that is cheapest for each part."""
    asked = alternatives[0].problem
    cuts: dict[Hashable, tuple[int, list[int]]] = {}  # equal layers make equal parts: each kind is cut once
    exact: set[str] = set()
    approximate: set[str] = set()
    kept_exact: set[str] = set()
    uncarried: set[str] = set()
    for part in parts_of([each.network for each in alternatives]):
        kind = tuple(kind_of(places, each.network) for places, each in zip(part, alternatives, strict=True))
        if kind not in cuts:
            cuts[kind] = _choose(part, alternatives)
        chosen, numbers = cuts[kind]
        problem, names = alternatives[chosen].problem, {name for places in part for name, _, _ in places}
        sets = _sets([part[chosen][number] for number in numbers])
        exact |= sets[0]
        approximate |= sets[1]
        kept_exact |= {n for n in names if asked.values[n].approximable and not problem.values[n].approximable}
        uncarried |= (asked.carriers.keys() - problem.carriers.keys()) & names
    if kept_exact:
        asked = asked.with_exact(kept_exact, "fewer bytes exactly than in codes")
    return asked.without_carriers(uncarried), (frozenset(exact), frozenset(approximate))


def _choose(part: Sequence[list[Place]], alternatives: Sequence[_Alternative]) -> tuple[int, list[int]]:
    """Which alternative stores least for a part, and the numbers of the places where its cut stores a value."""
    names = {name for places in part for name, _, _ in places}
    seen: dict[Hashable, float] = {}
    best: tuple[float, int, list[int]] | None = None
    for index, (places, each) in enumerate(zip(part, alternatives, strict=True)):
        stored = cut(places, each.network)
        sets = _sets(stored)
        key = id(each.problem), sets
        if key in seen:
            continue
        seen[key] = size = _bytes_of(each.problem, sets, names)
        if best is None or size < best[0]:
            number = {place: i for i, place in enumerate(places)}
            best = size, index, [number[place] for place in stored]
    assert best is not None
    return best[1], best[2]


def _sets(stored: Collection[Place]) -> Sets:
    exact = frozenset(name for name, level, _ in stored if level == EXACT)
    return exact, frozenset(name for name, _, _ in stored) - exact


def _bytes_of(problem: Problem, sets: Sets, names: Collection[str]) -> int:
    need = _resolve(problem, sets, names)
    kinds = _kinds(problem, need)
    stored = [_store(name, problem, need, kinds) for name in need.stored]
    # of two plans of the same bytes, the one that copies less
    return sum(evaluate(entry.nbytes, problem.hints) + isinstance(entry.codec, Copy) for entry in stored)


# --- what the cut means --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Need:
    """How backward gets each value it reads: the level it needs, and who asks."""

    level: Mapping[str, Level]
    stored: frozenset[str]
    recomputed: frozenset[str]
    carried: Mapping[str, tuple[str, ...]]
    readers: Mapping[str, list[tuple[str | None, Use]]]


def _resolve(problem: Problem, sets: Sets, names: Collection[str]) -> _Need:
    """Walks from what backward reads, of these values, to what is stored; what the walk does not meet is not stored."""
    values = problem.values
    exact, approximate = sets
    level: dict[str, Level] = {}
    readers: dict[str, list[tuple[str | None, Use]]] = {}
    heap: list[tuple[int, str]] = []
    stored, recomputed = set[str](), set[str]()
    carried: dict[str, list[str]] = {}

    def want(name: str, wanted: Level, reader: str | None, use: Use) -> None:
        if name not in level:
            heapq.heappush(heap, (-problem.rank[name], name))
        level[name] = EXACT if EXACT in (wanted, level.get(name)) or not values[name].approximable else APPROXIMATE
        readers.setdefault(name, []).append((reader, use))

    for name in names:
        if (demand := values[name].demand) is not None:
            want(name, level_of(demand), None, demand)
    while heap:
        _, name = heapq.heappop(heap)  # readers come later in the graph, so they have all been asked
        value = values[name]
        if value.free:
            continue
        root = value.embedded.root if problem.carried(value, level[name]) and value.embedded else None
        rides = root in approximate and level.get(root, APPROXIMATE) == APPROXIMATE
        if value.kind is Class.DISCRETE and not rides and _is_at_hand(value, problem, sets, stored=False):
            recomputed.add(name)
            for source, needed, use in problem.sources(value, EXACT, coded=False):
                want(source, needed, name, use)
            continue
        if name in exact or name in approximate or (root and not rides and not value.is_float):
            level[name] = EXACT if name in exact else level[name]
            stored.add(name)
            continue
        if root is not None and rides:
            carried.setdefault(root, []).append(name)
        elif not problem.recomputable(value, level[name]):
            why = f"needed in backward but not stored ({value.pinned})"
            raise UnsupportedGraph("plan", why, node=name, source=value.source)
        if value.is_float or not rides:
            recomputed.add(name)
        clamped = value.clamp is not None and level[name] == APPROXIMATE
        for source, needed, use in problem.sources(value, level[name], coded=rides):
            # a clamp's decision may come later in the graph than what reads it
            want(source, needed, None if clamped and use == Use.DECISION else name, use)
    return _Need(level, frozenset(stored), frozenset(recomputed), {k: tuple(v) for k, v in carried.items()}, readers)


def _is_at_hand(value: Activation, problem: Problem, sets: Sets, *, stored: bool = True) -> bool:
    """Whether backward has the very bits of the value: it is alive, stored exactly, or picked out of such values.

    Args:
        stored: whether it may be stored itself.
    """
    exact, approximate = sets
    if value.free or (stored and (value.name in exact or (value.name in approximate and value.kept))):
        return True
    operands = (problem.values[operand.name] for operand in value.operands)
    return value.unrounded and all(_is_at_hand(operand, problem, sets) for operand in operands)


def _kinds(problem: Problem, need: _Need) -> dict[str, Class]:
    """The class of each stored value, from what really is recomputed from it."""
    strictest: dict[str, Use] = {}
    for name in sorted(need.level, key=problem.rank.__getitem__, reverse=True):
        value = problem.values[name]
        softmax = value.kind is Class.SOFTMAX and value.for_softmax and value.approximable
        use = Use.SOFTMAX if softmax else Use.LINEAR
        for reader, how in need.readers.get(name, ()):
            through = strictest[reader] if reader in need.recomputed and reader is not None else Use.LINEAR
            use = max(use, through, how if how < Use.SENSITIVE else Use.LINEAR)
        strictest[name] = use
    return {
        name: CLASS_OF_USE[strictest[name]] if problem.values[name].approximable else problem.values[name].kind
        for name in need.stored
    }


def _store(name: str, problem: Problem, need: _Need, kinds: Mapping[str, Class]) -> Stored:
    value, kind = problem.values[name], kinds[name]
    if need.level[name] == EXACT or not value.approximable:
        codec = lossless_codec(value)
        reason = value.reason if not value.approximable else "backward needs it exactly as well"
        return Stored(name, codec, kind, codec.nbytes(value.sizes, value.dtype), reason)
    codec = problem.codec(value, kind)
    carried = tuple(sorted(need.carried.get(name, ()), key=lambda p: problem.values[p].is_float))
    if not carried and isinstance(codec, Carrier):
        codec = replace(problem, carriers={}).codec(value, kind)
    affine = problem.carriers[name] if carried else None
    return Stored(
        name, codec, kind, stored_bytes(codec, value, affine), value.kept or value.reason,
        affine=affine,
        moments=value.moments if Need.STATISTICS in codec.needs else None,
        carried=carried,
        predicates=tuple(p for p in carried if not problem.values[p].is_float),
    )  # fmt: skip
