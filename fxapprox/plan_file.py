"""Plans in a file: what a model stores, and in which codecs, as JSON that another run can take up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fxapprox import codecs, json_file
from fxapprox.activation import Activation, Plan
from fxapprox.codecs import Codec
from fxapprox.errors import FxApproxError

SCHEMA = 1
CODECS: dict[str, type[Codec]] = {
    kind.__name__: kind for name in codecs.__all__
    if isinstance(kind := getattr(codecs, name), type) and issubclass(kind, Codec)
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SavedEntry:
    """One stored value.

    Attributes:
        value: node name in the joint graph.
        op, dtype: of the value, to recognize it by.
        codec: how it is stored.
        carries: the decisions that its code holds.
    """

    value: str
    op: str
    dtype: str
    codec: Codec
    carries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """The plans of a model's training graphs, in the order of compilation."""

    graphs: tuple[tuple[SavedEntry, ...], ...]

    def save(self, path: str | Path) -> None:
        """Writes the plan to a JSON file.

        Raises:
            FxApproxError: it has a codec of the user's own.
        """
        graphs = [[_entry_to_json(entry) for entry in graph] for graph in self.graphs]
        json_file.write(path, SCHEMA, {"graphs": graphs})

    @classmethod
    def load(cls, path: str | Path) -> SavedPlan:
        """Reads a plan from a JSON file.

        Raises:
            FxApproxError: there is no such file, or it is not one that ``save`` wrote.
        """

        def parse(content: Any) -> SavedPlan:
            return cls(tuple(tuple(_entry_from_json(entry) for entry in graph) for graph in content["graphs"]))

        return json_file.read(path, SCHEMA, parse, what="plan", writer="SavedPlan.save")


def saved_entries(plan: Plan, activations: Iterable[Activation]) -> tuple[SavedEntry, ...]:
    """What a file keeps of a plan."""
    values = {a.name: a for a in activations}
    return tuple(
        SavedEntry(e.name, values[e.name].op, str(values[e.name].dtype), e.codec, e.carried) for e in plan.stored
    )


def _entry_to_json(entry: SavedEntry) -> dict[str, Any]:
    codec = entry.codec
    if CODECS.get(type(codec).__name__) is not type(codec):
        raise FxApproxError(f"{entry.value!r} is stored in {codec!r}, and a file can only name the codecs of fxapprox")
    parameters = {f.name: _plain(getattr(codec, f.name)) for f in fields(codec)}  # type: ignore[arg-type]
    return {
        "value": entry.value, "op": entry.op, "dtype": entry.dtype,
        "codec": {"type": type(codec).__name__, **parameters}, "carries": list(entry.carries),
    }  # fmt: skip


def _entry_from_json(entry: Mapping[str, Any]) -> SavedEntry:
    parameters = dict(entry["codec"])
    kind = CODECS[parameters.pop("type")]
    if "to" in parameters:
        parameters["to"] = getattr(torch, parameters["to"])
    codec = kind(**parameters)
    return SavedEntry(entry["value"], entry["op"], entry["dtype"], codec, tuple(entry["carries"]))


def _plain(parameter: Any) -> Any:
    return str(parameter).removeprefix("torch.") if isinstance(parameter, torch.dtype) else parameter


def matches(saved: SavedPlan, activations: Sequence[Activation]) -> list[tuple[tuple[SavedEntry, ...], str]]:
    """The graphs in the file, each with the first thing that does not fit ("" if all values are there), best first."""
    values = {a.name: a for a in activations}

    def misfit(entry: SavedEntry) -> str:
        value = values.get(entry.value)
        if value is None:
            return f"the graph has no value {entry.value!r}"
        if (value.op, str(value.dtype)) != (entry.op, entry.dtype):
            return f"{entry.value!r} is {value.op} in {value.dtype}, the plan has {entry.op} in {entry.dtype}"
        return ""

    found = [(graph, list(filter(None, map(misfit, graph)))) for graph in saved.graphs]
    found.sort(key=lambda match: (len(match[1]), -len(match[0])))
    return [(graph, misfits[0] if misfits else "") for graph, misfits in found]
