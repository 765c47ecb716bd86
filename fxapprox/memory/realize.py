"""Which values of a graph get memory of their own under Inductor.

Inductor computes a pointwise result where it is read, inside the kernel of its reader, unless something makes it
*realize* the value: an external kernel (convolution, product, attention) or the graph's caller wants it, it has several
readers and is not cheap to repeat, or its expression has grown long. What is realized and read by one loop of one
fused kernel alone needs no memory either. The rules are those of torch/_inductor/graph.py (``run_node``) and ir.py
(``StorageBox``), told here for FX nodes without lowering anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import CONVOLUTION, is_channels_last, is_image
from fxapprox.ir.arguments import argument
from fxapprox.ir.operator_table import Kernel, Kind
from fxapprox.ir.operators import is_cheap, is_pointwise, is_view, kind_of, op_name, operator_of, table_use
from fxapprox.ir.records import Use
from fxapprox.ir.tensors import nbytes_expression, numel, tensor_of
from fxapprox.memory.kernels import Operation, Value
from fxapprox.memory.workspace import CONVOLUTION_BACKWARD, on_cpu, workspace
from fxapprox.sizes import Size

UNROLLED = 8  # a reduction over fewer elements is pointwise
GATHERS = ("aten._unsafe_index", "aten.index")  # their results have the layout that their sizes say
IN_ORDER = ("aten.view", "aten.reshape", "aten._unsafe_view", "aten.unsqueeze")  # the order that their sizes say, too


class Realizer:
    """Walks a graph as Inductor does, and notes what is put into memory when."""

    def __init__(self, limits: adapter.RealizeLimits, eager: bool, channels_last: bool) -> None:
        self._limits, self._eager, self._channels_last = limits, eager, channels_last
        self._env: dict[fx.Node, Any] = {}
        self._parts: dict[fx.Node, Any] = {}  # of views: which part of the memory they are, None: all of it
        self._loops: set[Value] = set()  # what loops have put into memory
        self._joined: set[Value] = set()  # what is made of several values, one behind the other
        self._reshaped: set[Value] = set()  # what loops make of these lies in the order of its sizes
        self.operations: list[Operation] = []
        self.inputs: dict[str, Value] = {}
        self.outputs: list[Value | None] = []
        self.on_cpu = False
        self._part: int | None = None  # the slice that is being run
        self._first = 0  # where its operations begin

    def run(self, node: fx.Node, part: int | None = None) -> None:
        """Takes the next node.

        Args:
            part: the slice that it belongs to, by number; what such a function reads has to be in memory.
        """
        if part is not None:
            if part != self._part:
                self._first = len(self.operations)
            for value in _flat(self._env.get(source) for source in node.all_input_nodes):
                if value.part != part:
                    self._realize(value)
        self._part = part
        if node.op == "output":
            leaves = [self._env.get(n) if isinstance(n, fx.Node) else None for n in adapter.flat_outputs(node)]
            self.outputs = [v if isinstance(v, Value) else None for v in leaves]
            for value in self.outputs:
                self._realize(value)
        elif node.op in ("placeholder", "get_attr"):
            if (value := tensor_of(node)) is not None:
                self._env[node] = self.inputs[node.name] = made = _in_memory(node.name, value)
                self.on_cpu |= value.device.type == "cpu"
                saved = self._channels_last and not node.name.startswith("primals")
                made.channels_last = is_channels_last(value) or (saved and is_image(value))
        elif (made := self._call(node)) is not None:
            self._env[node] = made
            if isinstance(made, Value) and made.reads is not None:
                self._maybe_realize(node, made)

    def _call(self, node: fx.Node) -> Any:
        """The node's value: a Value, a tuple of them, or None for what is no tensor."""
        operands = [self._env[n] for n in node.all_input_nodes if n in self._env]
        name = op_name(node)
        if is_view(node) and operands:
            return self._view(node, name, operands[0])
        if node.meta.get("val") is None or name == "aten.copy_":
            for value in _flat(operands):  # an operator with effects alone
                self._realize(value)
            return None
        if (total := adapter.written_to(node)) is not None and not self._eager:
            for value in _flat(operands):
                self._realize(value)
            self._append(Operation(node.name, (), frozenset(_flat(operands)), part=self._part))
            return None, self._env[total]
        kind = "external" if self._eager else _kind(node)
        results = node.meta["val"]
        if node.target is adapter.IN_ORDER and _flat(operands):
            return self._in_order(node, results, _flat(operands)[0])
        if kind == "pointwise" and isinstance(results, torch.Tensor):
            made = self._pointwise(node, name, results)
            if name == "aten.cat" and results.device.type == "cpu":
                self._concatenate(made, _flat(operands))
            return made
        tensors = results if isinstance(results, (tuple, list)) else (results,)
        makes = tuple(_in_memory(node.name, r) if isinstance(r, torch.Tensor) else None for r in tensors)
        made = tuple(v for v in makes if v is not None)
        if kind == "reduction":
            loads = self._loads(node)
            largest = max(_flat(operands), key=lambda v: v.elements, default=made[0])
            self._append(
                Operation(node.name, made, frozenset(v for v, _ in loads), largest.rows, reduces=True, part=self._part)
            )
        elif made:
            direct = [a for a in node.args if isinstance(a, fx.Node)]  # by place, even where two are one
            others = [n for n in node.all_input_nodes if n not in direct]
            values = _flat([self._env.get(n) for n in (*direct, *others)])
            if name == CONVOLUTION and any(v in self._joined for v, _ in values[0].reads or ()):
                values[0].channels_last |= self._channels_last  # not in the place of what lies in another order
            for value in values:
                self._realize(value)
            # a slice is less than the value that it is of
            sizes = [0 if (of := tensor_of(a)) is None else nbytes_expression(of) for a in direct]
            if name == CONVOLUTION_BACKWARD and not self._eager:
                values[:2] = self._in_one_order(values, sizes)
            scratch: Size = 0
            if values and on_cpu(node):
                self._lay_out(name, values, made[0])
                scratch = workspace(name, values, sizes, made[0])
            self._append(Operation(node.name, made, frozenset(values), scratch=scratch, part=self._part))
        return makes if isinstance(results, (tuple, list)) else makes[0]

    def _in_one_order(self, values: Sequence[Value], sizes: Sequence[Size]) -> list[Value]:
        """Gradient and image as a convolution's backward reads them: Inductor copies what lies in another order."""
        gradient, image, weight = values[:3]
        last = image.channels_last or weight.channels_last
        both = zip((gradient, image), sizes, strict=False)
        return [value if value.channels_last == last else self._copied(value, size, last) for value, size in both]

    def _copied(self, value: Value, size: Size, channels_last: bool) -> Value:
        copied = replace(value, size=size, reads=frozenset({(value, None)}), channels_last=channels_last)
        self._realize(copied)
        return copied

    def _lay_out(self, name: str, values: Sequence[Value], made: Value) -> None:
        """Images that a convolution makes on the CPU lie as oneDNN writes them: as what it reads."""
        if name == CONVOLUTION:
            made.channels_last = self._channels_last or values[0].channels_last
        elif name == CONVOLUTION_BACKWARD:
            made.channels_last = values[1].channels_last or values[2].channels_last

    def _view(self, node: fx.Node, name: str, source: Any) -> Any:
        if name == "getitem" and isinstance(source, tuple):
            index = argument(node, 1)
            return source[index] if isinstance(index, int) and index < len(source) else None
        if isinstance(source, tuple):
            return source
        operand = argument(node, 0)
        part = self._parts.get(operand) if isinstance(operand, fx.Node) else None  # type: ignore[arg-type]
        self._parts[node] = node if kind_of(node) is Kind.PART else part
        if name in IN_ORDER:
            self._reshaped.add(source)
            if source in self._loops:
                source.channels_last = False
        if name in ("aten.as_strided", "fxapprox.in_memory", "fxapprox.fence"):
            self._realize(source)
        return source

    def _pointwise(self, node: fx.Node, name: str, result: torch.Tensor) -> Value:
        made = _in_memory(node.name, result)
        made.part = self._part
        times = _unrolled(node)
        made.reads = frozenset(
            (v, (part, i) if times > 1 else part) for v, part in self._loads(node) for i in range(times)
        )
        values = [self._env[n] for n in node.all_input_nodes if n in self._env]
        inlined = [v for v in _flat(values) if v.reads is not None]
        own: set[Any] = {node, *(a for a in node.args if isinstance(a, (int, float)))}
        own |= {(op, i) for v in inlined for op in v.ops for i in range(times)} if times > 1 else set()
        made.ops = frozenset(own).union(*(v.ops for v in inlined))
        last = [v.channels_last for v in _flat(values)]
        made.channels_last = all(last) if name == "aten.cat" else any(last) and name not in GATHERS
        made.heavy = operator_of(node).heavy or any(v.heavy for v in inlined)
        return made

    def _in_order(self, node: fx.Node, result: torch.Tensor, source: Value) -> Value:
        """The operand itself where it lies in this order, or was written by a loop, which can; a copy elsewhere."""
        last = is_channels_last(result)
        if source.reads is not None or (source.channels_last != last and source not in self._loops):
            source = self._pointwise(node, op_name(node), result)
            self._realize(source)
        source.channels_last = last
        return source

    def _concatenate(self, made: Value, operands: Sequence[Value]) -> None:
        """On the CPU operands are computed where they stand in the result, and read from there."""
        self._realize(made)
        self._joined.add(made)
        for at, operand in enumerate(operands):
            if operand.reads is not None:
                operand.reads, operand.ops, operand.heavy = frozenset({(made, at)}), frozenset(), False

    def _loads(self, node: fx.Node) -> frozenset[tuple[Value, Any]]:
        """What has to be read from memory to compute a node's operands."""
        found: set[tuple[Value, Any]] = set()
        unread = [argument(node, 1)] if table_use(node, 1) is Use.SHAPE else ()
        for source in node.all_input_nodes:
            if source in unread:
                continue
            for value in _flat([self._env.get(source)]):
                if value.reads is None:
                    found.add((value, self._parts.get(source)))
                elif (part := self._parts.get(source)) is None:
                    found |= value.reads
                else:
                    found |= {(v, (p, part)) for v, p in value.reads}
        return frozenset(found)

    def _append(self, operation: Operation) -> None:
        """Adds an operation; one that a slice reads the result of, before the slice."""
        if self._part in (None, operation.part):
            self.operations.append(operation)
        else:
            self.operations.insert(self._first, operation)
            self._first += 1

    def _maybe_realize(self, node: fx.Node, value: Value) -> None:
        assert value.reads is not None
        limits = self._limits
        users = list(node.users)
        large = len(value.ops) + len(value.reads) > limits.ops
        nontrivial = sum(v.elements > 1 for v, _ in value.reads) > 1
        if (
            any(user.op == "output" for user in users)
            or (len(users) > 1 and (value.heavy or large or len(value.reads) > limits.reads))
            or (nontrivial and (large or len(value.reads) > limits.all_reads))
            or (nontrivial and len(users) > 1 and any(_kind(u) == "external" for u in users if not is_view(u)))
        ):
            self._realize(value)

    def _realize(self, value: Value | None) -> None:
        if value is None or value.reads is None:
            return
        reads = value.reads
        whole = frozenset(v for v, part in reads if part is None)
        loads = frozenset(v for v, _ in reads)
        self._append(Operation(value.name, (value,), loads, value.rows, whole, part=value.part))
        self._loops.add(value)
        value.channels_last &= value not in self._reshaped
        value.reads, value.ops, value.heavy = None, frozenset(), False


def _kind(node: fx.Node) -> str:
    if node.op == "output":
        return "output"
    kernel = operator_of(node).kernel
    if kernel is Kernel.REDUCTION:
        return "pointwise" if _unrolled(node) > 1 else "reduction"
    if kernel is Kernel.SCATTER:  # it ends before it is read, as a reduction does
        indices = next(arg for arg in node.args if isinstance(arg, (list, tuple)))
        return "external" if any(isinstance(n, fx.Node) and _selects(n) for n in indices) else "reduction"
    return "pointwise" if kernel is Kernel.POINTWISE or is_cheap(node) or is_pointwise(node) else "external"


def _selects(node: fx.Node) -> bool:
    """Whether it is a mask: as an index it has to be searched."""
    value = tensor_of(node)
    return value is not None and value.dtype in (torch.bool, torch.uint8)


def _unrolled(node: fx.Node) -> int:
    """How many elements a short reduction adds up; 1 for everything else."""
    source = argument(node, 0) if operator_of(node).kernel is Kernel.REDUCTION else None
    if not isinstance(source, fx.Node):
        return 1
    value, result = tensor_of(source), tensor_of(node)
    if value is None or result is None or numel(result) <= 1:
        return 1
    times = numel(value) // max(numel(result), 1)
    return times if times < UNROLLED else 1


def _in_memory(name: str, value: torch.Tensor) -> Value:
    sizes = reversed([adapter.hint(size) for size in value.shape])
    return Value(name, nbytes_expression(value), frozenset(accumulate(sizes, mul, initial=1)), value.dtype)


def _flat(values: Iterable[Any]) -> list[Value]:
    return [v for value in values for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Value)]
