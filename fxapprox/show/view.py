"""Graphs as people look at them: boxes and edges, each codec's dozens of operators one box.

The graphs that go to Inductor are long, and most of what is in them encodes and decodes. A view has one box for each
operator of the model, one for each value that is quantized and one for each that is dequantized; every node of the
graph is in exactly one box. Text (``fx``), drawings (``dot``) and the HTML report are made from views.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import Codec
from fxapprox.ir.crossing import Crossing
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import op_name
from fxapprox.ir.records import Activation
from fxapprox.ir.source import module_path, source_line
from fxapprox.ir.storage import Fate, Storage
from fxapprox.ir.tensors import nbytes, tensor_of
from fxapprox.report.data import ReportData

STAGES = ("joint", "plan", "forward", "backward")
AFTER = "after:"  # and a pass: the two graphs as it left them
HINTS = (adapter.IN_MEMORY, adapter.IN_ORDER, adapter.FENCE, adapter.AFTER)  # words to Inductor about what they return

Kind = Literal["input", "operator", "quantize", "dequantize", "boundary", "output"]
Half = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Box:
    """One thing to look at: an operator, an input, or all operators of one codec.

    Attributes:
        name: unique in its view: the node's name, or "quantize(conv_3)".
        kind: "boundary" is an operator or input that segments are computed again from.
        half: of the training step. In the joint graph, what needs no incoming gradient belongs to forward.
        op: e.g. "aten.convolution"; of a codec its description, e.g. "4-bit threshold"; of an input what the user calls
            it, e.g. "blocks.0.weight", "saved" for what forward leaves for backward, "gradient" for an incoming one.
        module, source: path of the module that made it, and the user's source line.
        how: how the value is kept for backward; None for gradients, and in the joint graph, where nothing is decided
            yet.
        bytes: of the value, or of its code; 0 for what is no tensor. Symbolic sizes by their hints.
        shape, dtype: of the value, for codecs of the value that they stand for; () and "" for what is no tensor.
        reason: why it is kept so; in the joint graph, why it has its class.
        arguments: as text; other boxes by their names, and "[1]" behind the name of a box with several results.
        nodes: names of the graph's nodes in it, in order.
    """

    name: str
    kind: Kind
    half: Half
    op: str
    module: str
    source: str
    how: Storage | None
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    reason: str
    arguments: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def storage(self) -> str:
        """How the value is kept, in words; "" where nothing is decided."""
        return self.how.text if self.how is not None else ""


@dataclass(frozen=True, slots=True)
class GraphView:
    """A graph in boxes.

    Attributes:
        stage: see :func:`graph_view`.
        boxes: each stands behind those that it reads.
        edges: (name of a box, name of one that reads it), without repetitions.
    """

    stage: str
    boxes: tuple[Box, ...]
    edges: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Code:
    """The codec that a node belongs to; ``turn`` tells those apart that stand for the same value."""

    kind: Literal["quantize", "dequantize"]
    value: str
    codec: Codec
    turn: int

    @property
    def op(self) -> str:
        return self.codec.text

    @property
    def name(self) -> str:
        return f"{self.kind}({self.value})"


@dataclass(frozen=True, slots=True)
class _Kept:
    """What becomes of a forward value, and why."""

    how: Storage | None
    reason: str


def graphs_at(report: ReportData, stage: str) -> Iterator[tuple[str, ReportData, str]]:
    """The graphs of a report that a stage means: (what each is called, the report that has it, its stage there).

    Args:
        stage: one of ``STAGES``, or "after:" and the name of a pass; of one that the report has not kept, no graph.
    """
    name = stage.removeprefix(AFTER)
    if name == stage:
        yield stage, report, stage
    elif name in report.kept:
        forward, backward = report.kept[name]
        left = replace(report, forward=forward, backward=backward)
        yield from ((f"{half} after {name}", left, half) for half in ("forward", "backward"))


def graph_view(report: ReportData, stage: str) -> GraphView:
    """One graph of a report in boxes.

    Args:
        report: of one graph; of a model with several, one of ``report.graphs``.
        stage: "joint": forward and backward as torch traced them; "plan": the same, and what happens to each value;
            "forward", "backward": the two graphs that training runs.

    Raises:
        ValueError: the stage is unknown, or the report is the sum of several graphs' or has none.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: expected one of {', '.join(STAGES)}")
    gm = getattr(report, "joint" if stage == "plan" else stage)
    if gm is None:
        raise ValueError("the report is a sum of several (take one of report.graphs), or of a model that is gone")
    return _Drawing(report, stage, gm).view()


_Key: TypeAlias = "fx.Node | _Code"  # what a box is made of: one node (and hints about it), or a codec's nodes


class _Drawing:
    """Puts the nodes of one graph into boxes."""

    def __init__(self, report: ReportData, stage: str, gm: fx.GraphModule) -> None:
        self.stage = stage
        self.inputs = report.inputs
        self.values = {a.name: a for a in report.activations}
        self.fates = _fates(report) if stage != "joint" else {}
        self.boundary = {name for segment in report.segments for name in segment.boundary} if self.fates else set()
        self.stands_for = _stands_for(report) if stage == "backward" else {}
        self.again = _again(report) if stage == "backward" else {}
        self.gradients = _gradients(report, stage, gm)
        self.groups = _groups(gm, _codes(report, stage))
        self.keys = {node: key for key, nodes in self.groups.items() for node in nodes}
        self.names: dict[_Key, str] = {}
        taken: set[str] = set()
        for key in self.groups:
            self.names[key] = _unique(key.name, taken)

    def view(self) -> GraphView:
        order = tuple(self._ordered())
        edges = {(self.names[source], self.names[key]): None for key in order for source in self._sources(key)}
        return GraphView(self.stage, tuple(map(self._box, order)), tuple(edges))

    def _sources(self, key: _Key) -> list[_Key]:
        """The boxes that a box reads."""
        read = (self.keys[source] for node in self.groups[key] for source in node.all_input_nodes)
        return [source for source in dict.fromkeys(read) if source != key]

    def _ordered(self) -> Iterator[_Key]:
        """The boxes in the graph's order, each behind what it reads: the nodes of two codecs may take turns."""
        done: set[_Key] = set()
        for first in self.groups:
            stack = [first]
            while stack:
                missing = [source for source in self._sources(stack[-1]) if source not in done]
                stack += missing
                if not missing and (key := stack.pop()) not in done:
                    done.add(key)
                    yield key

    def _box(self, key: _Key) -> Box:
        nodes = self.groups[key]
        about = self._value(key)
        value = self.values.get(about)
        kept = self.fates.get(about, _Kept(None, value.reason if value is not None else ""))
        segment = self.again.get(nodes[0].name)
        how = kept.how if segment is None else Storage.recomputed(segment)
        shape, dtype, size = _traits(nodes[0])
        if isinstance(key, _Code):
            results = self._results(key)
            shape, dtype, size = _traits(results[0]) if value is None else _traits_of(value)
            size = sum(_traits(part)[2] for part in results) if key.kind == "quantize" else size
            if how is None or how.codec is None or how.codec.text != key.op:  # coded once more, in another way
                how = Storage.stored(key.codec, segment)
        return Box(
            name=self.names[key],
            kind=self._kind(key, about),
            half="backward" if nodes[0] in self.gradients else "forward",
            op=self._op(key),
            module=(value.module if value is not None else "") or module_path(nodes[0]),
            source=(value.source if value is not None else "") or source_line(nodes[0]),
            how=how,
            bytes=size,
            shape=shape,
            dtype=dtype,
            reason=kept.reason,
            arguments=self._arguments(key),
            nodes=tuple(node.name for node in nodes),
        )

    def _value(self, key: _Key) -> str:
        """Name of the forward value that a box makes, decodes, carries or computes again; else its own."""
        return key.value if isinstance(key, _Code) else self.stands_for.get(key.name, key.name)

    def _op(self, key: _Key) -> str:
        if isinstance(key, _Code):
            return key.op
        if key.op != "placeholder":
            return op_name(key)
        made_up = "gradient" if adapter.is_tangent(key) else "saved" if self.stage == "backward" else "input"
        return self.inputs.get(key.name, made_up)

    def _kind(self, key: _Key, about: str) -> Kind:
        if isinstance(key, _Code):
            return key.kind
        if key.op == "output":
            return "output"
        is_input = key.op in ("placeholder", "get_attr")
        if about in self.boundary and (is_input or self.stage != "backward"):
            return "boundary"
        return "input" if is_input else "operator"

    def _arguments(self, key: _Key) -> tuple[str, ...]:
        if isinstance(key, _Code):  # what it stands for comes first
            sources = sorted(self._sources(key), key=lambda source: self._value(source) != key.value)
            return tuple(self.names[source] for source in sources)
        if key.op == "output":
            return tuple(self.names[source] for source in self._sources(key))
        named = (f"{name}={self._text(argument)}" for name, argument in key.kwargs.items())
        return (*map(self._text, key.args), *named)

    def _text(self, argument: Any) -> str:
        if isinstance(argument, fx.Node):
            return self._reference(argument)
        if isinstance(argument, (list, tuple)):
            return f"[{', '.join(map(self._text, argument))}]"
        return f"{argument:.6g}" if isinstance(argument, float) else str(argument).removeprefix("torch.")

    def _reference(self, node: fx.Node) -> str:
        """A node by the name of its box, and which of the box's results it is."""
        key = self.keys[node]
        if not isinstance(key, _Code):
            return self.names[key]
        results = self._results(key)
        return self.names[key] + (f"[{results.index(node)}]" if len(results) > 1 else "")

    def _results(self, key: _Key) -> list[fx.Node]:
        """The nodes of a box that other boxes read."""
        return [node for node in self.groups[key] if any(self.keys[user] != key for user in node.users)]


def _fates(report: ReportData) -> dict[str, _Kept]:
    """What becomes of each forward value."""
    recomputed = set(report.recomputed)
    found = {
        a.name: _Kept(
            Storage(Fate.FREE if a.free else Fate.RECOMPUTED if a.name in recomputed else Fate.UNNEEDED), a.reason
        )
        for a in report.activations
    }
    found.update((d.value, _Kept(d.how, d.reason)) for d in (*report.decisions, *report.gradients))
    return found


def _stands_for(report: ReportData) -> dict[str, str]:
    """{node of backward: the forward value that it carries or computes again}, where the names differ."""
    assert report.forward is not None
    assert report.backward is not None
    if report.fallback:
        return {}
    inside = {node: spliced.value for spliced in report.spliced for node in spliced.encode}
    crossing = Crossing(report.forward, report.backward, report.outputs)
    inputs = ((taken.name, _original(node).name) for node, taken in crossing.inputs.items())
    again = (pair for segment in report.segments for pair in segment.again)
    return {made: inside.get(source, source) for made, source in (*inputs, *again)}


def _again(report: ReportData) -> dict[str, int]:
    """{node of backward: the segment that it is computed again in, counted from 1}."""
    return {made: i for i, segment in enumerate(report.segments, 1) for made, _ in segment.again}


def _gradients(report: ReportData, stage: str, gm: fx.GraphModule) -> frozenset[fx.Node]:
    """The nodes that belong to the backward half of the training step."""
    if stage in ("joint", "plan"):
        return Joint(gm, report.outputs).backward
    return frozenset(gm.graph.nodes) if stage == "backward" else frozenset()


def _codes(report: ReportData, stage: str) -> dict[str, _Code]:
    """{node: the codec that it belongs to}."""
    encode: dict[str, _Code] = {}
    decode: dict[str, _Code] = {}
    for turn, spliced in enumerate(report.spliced):
        quantize = _Code("quantize", spliced.value, spliced.codec, turn)
        encode.update(dict.fromkeys(spliced.encode, quantize))
        decode.update(dict.fromkeys(spliced.decode, replace(quantize, kind="dequantize")))
    if stage == "backward":  # what is computed again is encoded again
        again = (pair for segment in report.segments for pair in segment.again)
        return decode | {made: encode[source] for made, source in again if source in encode}
    return encode if stage == "forward" else {}


def _groups(gm: fx.GraphModule, codes: Mapping[str, _Code]) -> dict[_Key, list[fx.Node]]:
    """The nodes of each box, boxes in the order of their first nodes."""
    found: dict[_Key, list[fx.Node]] = {}
    keys: dict[fx.Node, _Key] = {}
    for node in gm.graph.nodes:
        keys[node] = codes.get(node.name, keys[node.args[0]] if node.target in HINTS else node)
        found.setdefault(keys[node], []).append(node)
    return found


def _original(node: fx.Node) -> fx.Node:
    """The node behind a hint."""
    while node.target in HINTS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _traits(node: fx.Node) -> tuple[tuple[int, ...], str, int]:
    """(shape, dtype, bytes) of a node's value."""
    value = tensor_of(node)
    if value is None:
        return (), "", 0
    shape = tuple(adapter.hint(size) for size in value.shape)
    return shape, str(value.dtype).removeprefix("torch."), nbytes(value)


def _traits_of(value: Activation) -> tuple[tuple[int, ...], str, int]:
    return value.shape, str(value.dtype).removeprefix("torch."), value.nbytes


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number behind it if it is taken; it is taken from now on."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    found = next(n for n in itertools.chain((name,), numbered) if n not in taken)
    taken.add(found)
    return found
