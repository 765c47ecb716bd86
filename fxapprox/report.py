"""The report of one graph: what backward reads, what is stored for it, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from torch import fx

from fxapprox.activation import Activation, Class, Decision, Stored
from fxapprox.codecs import Codec, Exact
from fxapprox.graph import nbytes, storage_of, tensor_of
from fxapprox.passes.pipeline import Rewrite

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """What happens to the activations of one training graph; bytes at the sizes it was traced with.

    Attributes:
        baseline_bytes: what plain torch.compile would store for backward. Parameters, inputs and the user's own
            outputs are alive anyway and are not counted, here or below.
        saved_bytes: what this plan stores.
        decisions: one for each value that is stored, here or by plain torch.compile; largest first.
        fallback: why the graph was left as it is, or "".
        seconds: time spent in each step of the pipeline.
        joint, forward, backward: the graphs, as they went to Inductor.
        graphs: where this is the sum of several graphs: their reports.
    """

    baseline_bytes: int
    saved_bytes: int
    decisions: tuple[Decision, ...]
    fallback: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    joint: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    forward: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    backward: fx.GraphModule | None = field(default=None, repr=False, compare=False)
    graphs: tuple[Report, ...] = ()

    @property
    def ratio(self) -> float:
        """How many times less is stored; 1.0 where nothing is stored either way."""
        return (
            self.baseline_bytes / self.saved_bytes
            if self.saved_bytes
            else 1.0
            if not self.baseline_bytes
            else float("inf")
        )

    def to_json(self) -> str:
        """The report as JSON, without the graphs; `schema` grows by one when a field changes its meaning."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "baseline_bytes": self.baseline_bytes,
                "saved_bytes": self.saved_bytes,
                "fallback": self.fallback,
                "seconds": self.seconds,
                "decisions": [_plain(decision) for decision in self.decisions],
            },
            indent=1,
        )

    def __str__(self) -> str:
        from fxapprox.text import report_text

        return report_text(self)


def report_of(result: Rewrite) -> Report:
    """The report of one rewrite."""
    nodes = {node.name: node for node in result.joint.gm.graph.nodes}
    values = {a.name: a for a in result.activations}
    alive = {id(n) for n in result.joint.outputs[0]}
    before = _by_storage((nodes[name] for name in result.baseline if name in nodes), alive)
    decisions: list[Decision] = []
    seen: set[fx.Node] = set()
    for parts in sorted(result.parts, key=lambda p: not isinstance(p.entry.codec, Exact)):
        entry = parts.entry
        if entry.name not in values:
            continue
        after = sum(size for node, size in _by_storage(parts.nodes, set()).items() if node not in seen)
        seen |= _by_storage(parts.nodes, set()).keys()
        base = storage_of(nodes[entry.name])
        decisions.append(_decision(values[entry.name], _storage_text(entry), before.pop(base, 0), after, entry))
        for name in entry.predicates:
            text = f"in the code of {entry.name}"
            was = before.pop(storage_of(nodes[name]), 0)
            decisions.append(_decision(values[name], text, was, 0, None))
    for node, size in before.items():
        if node.name in values:
            storage = "recomputed" if node.name in result.plan.recomputed else "not needed"
            decisions.append(_decision(values[node.name], storage, size, 0, None))
    baseline = sum(_by_storage((nodes[name] for name in result.baseline if name in nodes), alive).values())
    saved = sum(d.bytes_after for d in decisions) if not result.fallback and result.activations else baseline
    decisions.sort(key=lambda d: (-d.bytes_before, -d.bytes_after))
    return Report(
        baseline, saved, tuple(decisions), result.fallback, result.seconds,
        result.joint.gm, result.forward, result.backward,
    )  # fmt: skip


def merge(reports: Sequence[Report]) -> Report:
    """The sum of several graphs' reports; a single one as it is."""
    if len(reports) == 1:
        return reports[0]
    decisions = sorted((d for r in reports for d in r.decisions), key=lambda d: (-d.bytes_before, -d.bytes_after))
    seconds: dict[str, float] = {}
    for report in reports:
        for name, lap in report.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + lap
    return Report(
        sum(r.baseline_bytes for r in reports),
        sum(r.saved_bytes for r in reports),
        tuple(decisions),
        "; ".join(r.fallback for r in reports if r.fallback),
        seconds,
        graphs=tuple(reports),
    )


def _decision(value: Activation, storage: str, before: int, after: int, entry: Stored | None) -> Decision:
    return Decision(
        value=value.name,
        shape=value.shape,
        dtype=str(value.dtype).removeprefix("torch."),
        kind=entry.kind if entry is not None else value.kind,
        reach=value.reach,
        storage=storage,
        bytes_before=before,
        bytes_after=after,
        predicates=entry.predicates if entry is not None else (),
        module=value.module,
        source=value.source,
        reason=entry.reason if entry is not None else value.reason,
    )


def _storage_text(entry: Stored) -> str:
    codec: Codec = entry.codec
    if isinstance(codec, Exact) or codec.bits is None or codec.label.startswith("1-bit"):
        return codec.label
    return f"{codec.bits}-bit {codec.label}"


def _by_storage(values: Iterable[fx.Node], alive: set[int]) -> dict[fx.Node, int]:
    """Bytes of each piece of memory that these values keep alive; inputs and the user's outputs are not counted."""
    held: dict[fx.Node, int] = {}
    for node in values:
        base = storage_of(node)
        if base.op in ("placeholder", "get_attr") or id(node) in alive or id(base) in alive:
            continue
        value = tensor_of(base) if tensor_of(base) is not None else tensor_of(node)
        if value is not None:
            held[base] = nbytes(value)
    return held


def _plain(decision: Decision) -> dict:
    fields = asdict(decision)
    for name, value in fields.items():
        if isinstance(value, Class) or hasattr(value, "value"):
            fields[name] = value.value
    return fields
