"""Plans in a file: what a model stores, and in which codecs, as JSON that another run can take up."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from fxapprox.codecs import Cast, Codec, Complex, Copy, Exact, Group, Identity, Integer, Mask, Standard, Threshold, Zero
from fxapprox.errors import FxApproxError, shown
from fxapprox.files import json_file, typed
from fxapprox.ir.records import Activation, Plan

SCHEMA = 1
CODECS: dict[str, type[Codec]] = {
    kind.__name__: kind
    for kind in (Cast, Complex, Copy, Exact, Group, Identity, Integer, Mask, Standard, Threshold, Zero)
}
DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
NO_TENSOR = "None"  # in place of a dtype


@dataclass(frozen=True, slots=True)
class SavedEntry:
    """One stored value.

    Attributes:
        value: node name in the joint graph.
        op, dtype: of the value, to recognize it by.
        codec: how it is stored.
        carries: the decisions that its code holds.

    Raises:
        FxApproxError: a name is none, the dtype is not one of torch's, or a decision is named twice.
    """

    value: str
    op: str
    dtype: str
    codec: Codec
    carries: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in ("value", "op"):
            _require(_is_name(getattr(self, field)), field, getattr(self, field), "a name")
        ok = isinstance(self.dtype, str) and (self.dtype in DTYPES or self.dtype == NO_TENSOR)
        _require(ok, "dtype", self.dtype, "one of torch's, such as 'torch.float32'")
        _require(isinstance(self.codec, Codec), "codec", self.codec, "a codec")
        ok = isinstance(self.carries, tuple) and all(map(_is_name, self.carries))
        _require(
            ok and len(set(self.carries)) == len(self.carries), "carries", self.carries, "names, each of them once"
        )


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """The plans of a model's training graphs, in the order of compilation.

    Raises:
        FxApproxError: a graph is not a tuple of entries, or has two for one value.
    """

    graphs: tuple[tuple[SavedEntry, ...], ...]

    def __post_init__(self) -> None:
        ok = isinstance(self.graphs, tuple) and all(isinstance(graph, tuple) for graph in self.graphs)
        ok = ok and all(isinstance(entry, SavedEntry) for graph in self.graphs for entry in graph)
        _require(ok, "graphs", self.graphs, "tuples of SavedEntry")
        for i, graph in enumerate(self.graphs):
            value, count = max(Counter(entry.value for entry in graph).items(), key=lambda at: at[1], default=("", 0))
            _require(count <= 1, f"graphs[{i}]", value, "each value once")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan to a JSON file, as a whole or not at all.

        Raises:
            FxApproxError: it has a codec of the user's own, or the file cannot be written.
        """
        json_file.write(path, SCHEMA, "graphs", [[_entry_to_json(entry) for entry in graph] for graph in self.graphs])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SavedPlan:
        """Reads a plan from a JSON file.

        Raises:
            FxApproxError: there is no such file, or it is not one that ``save`` wrote.
        """

        def parse(graphs: Any) -> SavedPlan:
            return cls(typed.read(tuple[tuple[SavedEntry, ...], ...], graphs, "graphs", {Codec: _codec_from_json}))

        return json_file.read(path, SCHEMA, "graphs", parse, what="plan", writer="SavedPlan.save")

    @property
    def is_ours(self) -> bool:
        """Whether all codecs are of fxapprox: those have a repr that says all of them."""
        return all(map(_is_ours, (entry.codec for graph in self.graphs for entry in graph)))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_ours(codec: Codec) -> bool:
    return CODECS.get(type(codec).__name__) is type(codec)


def _require(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        raise FxApproxError(f"{field}={shown(value)}: expected {expected}")


def saved_entries(plan: Plan, activations: Iterable[Activation]) -> tuple[SavedEntry, ...]:
    """What a file keeps of a plan."""
    values = {a.name: a for a in activations}
    return tuple(
        SavedEntry(e.name, values[e.name].op, str(values[e.name].dtype), e.codec, e.carried) for e in plan.stored
    )


def _entry_to_json(entry: SavedEntry) -> dict[str, Any]:
    codec = entry.codec
    if not _is_ours(codec):
        raise FxApproxError(
            f"{entry.value!r} is stored in {shown(codec)}, and a file can only name the codecs of fxapprox"
        )
    parameters = {f.name: _plain(getattr(codec, f.name)) for f in fields(codec)}  # type: ignore[arg-type]
    return {
        "value": entry.value, "op": entry.op, "dtype": entry.dtype,
        "codec": {"type": type(codec).__name__, **parameters}, "carries": list(entry.carries),
    }  # fmt: skip


def _codec_from_json(value: Any, place: str) -> Codec:
    typed.require(type(value) is dict and "type" in value, value, place, "a codec: an object with a type")
    parameters = dict(value)
    name = parameters.pop("type")
    typed.require(type(name) is str and name in CODECS, name, f"{place}.type", f"one of {', '.join(CODECS)}")
    return typed.read(CODECS[name], parameters, place, {torch.dtype: _dtype_from_json})


def _dtype_from_json(value: Any, place: str) -> torch.dtype:
    ok = type(value) is str and f"torch.{value}" in DTYPES
    typed.require(ok, value, place, "the name of a dtype, such as 'bfloat16'")
    return DTYPES[f"torch.{value}"]


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
