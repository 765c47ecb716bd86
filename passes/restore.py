"""Takes up a plan that was saved: the same values in the same codecs, if the graph is still one that it fits."""

from __future__ import annotations

from collections.abc import Mapping

from fxapprox.codecs.choose import FEWEST
from fxapprox.errors import InvalidPlan, UnsupportedGraph
from fxapprox.files.plan_file import SavedEntry, SavedPlan, matches
from fxapprox.ir.records import Activation, Plan
from fxapprox.options import Options
from fxapprox.passes.plan import plan_storing


def restore(saved: SavedPlan, activations: tuple[Activation, ...], options: Options, hints: Mapping[str, int]) -> Plan:
    """The saved plan of this graph.

    Everything is derived again from the graph, except for which values are stored and in which codec, and then
    compared with the file: a plan that would store too little, decide on approximate values or give a class fewer bits
    than it needs does not pass.

    Requires: the Activations of one joint graph, a hint for each symbolic size.
    Ensures: what ``plan`` does.
    Changes numerics: no graph is touched.

    Raises:
        InvalidPlan: the plan does not fit the graph.
    """
    found = matches(saved, activations) or [((), "it has no graphs")]
    why = found[0][1]
    for entries in (entries for entries, misfit in found if not misfit):
        try:
            return _restored(entries, activations, options, hints)
        except (InvalidPlan, UnsupportedGraph) as error:  # another graph of the model may have values of the same names
            why = why or str(error)
    raise InvalidPlan(
        f"the saved plan does not fit this graph: {why}. The model, its input sizes, min_bytes or the torch version"
        " changed since it was saved; compile without plan= and save again"
    )


def _restored(
    entries: tuple[SavedEntry, ...], activations: tuple[Activation, ...], options: Options, hints: Mapping[str, int]
) -> Plan:
    plan = plan_storing(activations, options, hints, {entry.value: entry.codec for entry in entries})
    _compare(plan, entries)
    return plan


def _compare(plan: Plan, entries: tuple[SavedEntry, ...]) -> None:
    found = {entry.name: entry for entry in plan.stored}
    for entry in entries:
        mine = found.pop(entry.value, None)
        if mine is None:
            raise InvalidPlan(f"backward does not need {entry.value!r} stored")
        if mine.codec != entry.codec:
            raise InvalidPlan(f"{entry.value!r} would be stored in {mine.codec}, not in {entry.codec}")
        if set(mine.carried) != set(entry.carries):
            here, there = (", ".join(sorted(names)) or "none" for names in (mine.carried, entry.carries))
            raise InvalidPlan(f"the code of {entry.value!r} carries other decisions: {here}; in the plan {there}")
        bits = entry.codec.bits
        if not entry.codec.lossless and bits is not None and bits < FEWEST.get(mine.kind, 8):
            raise InvalidPlan(f"{entry.value!r} needs {FEWEST.get(mine.kind, 8)} bits ({mine.kind.value}), not {bits}")
    if found:
        raise InvalidPlan(f"backward needs {next(iter(found))!r} stored as well")
