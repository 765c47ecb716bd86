"""Which values of a graph get memory of their own under Inductor, and which of them one kernel makes.

Inductor computes a pointwise result where it is read, inside the kernel of its reader, unless something makes it
*realize* the value: an external kernel (convolution, product, attention) or the graph's caller wants it, it has several
readers and is not cheap to repeat, or its expression has grown long. What is realized and read by one loop of one
fused kernel alone needs no memory either. The rules are those of torch/_inductor/graph.py (``run_node``) and ir.py
(``StorageBox``), told here for FX nodes without lowering anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, pairwise, takewhile
from operator import mul
from typing import Any

import sympy
import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import CONVOLUTION, PARTS, is_channels_last, is_image
from fxapprox.ir.arguments import argument
from fxapprox.ir.operators import is_view, op_name, rule_of
from fxapprox.ir.tensors import nbytes_expression, numel, tensor_of
from fxapprox.sizes import Size

UNROLLED = 8  # a reduction over fewer elements is pointwise
DISTANT = 64  # loops so far apart that share no result are not made one
HEAVY = frozenset(f"aten.{name}" for name in "exp log log10 log1p log2 sigmoid tanh".split())
REDUCTIONS = frozenset(
    "aten.sum aten.mean aten.var_mean aten.var aten.std aten.amax aten.amin aten.prod aten.any aten.all aten.max"
    " aten.min aten.argmax aten.argmin aten.cumsum aten.logsumexp prims.prepare_softmax_online".split()
)
POINTWISE = frozenset(
    "aten.avg_pool2d aten.avg_pool2d_backward aten._adaptive_avg_pool2d aten.upsample_nearest2d"
    " aten.upsample_nearest2d_backward aten.upsample_bilinear2d prims._low_memory_max_pool_with_offsets"
    " aten.max_pool2d_with_indices_backward prims.inductor_random prims.inductor_lookup_seed aten.slice_backward"
    " fxapprox.random_of_seed fxapprox.randint_of_seed prims.inductor_randint"
    " aten.select_backward aten.select_scatter aten.slice_scatter aten.triu aten.tril".split()
)
SCATTERS = frozenset("aten.index_put aten._unsafe_index_put".split())  # loops that write where an index says
GATHERS = frozenset("aten._unsafe_index aten.index".split())  # their results have the layout that their sizes say
SHAPE_ALONE = frozenset(  # of the second operand
    "aten.avg_pool2d_backward aten._adaptive_avg_pool2d_backward aten.max_pool2d_with_indices_backward".split()
)
CONVOLUTION_BACKWARD = "aten.convolution_backward"
RESHAPES = frozenset("aten.view aten.reshape aten._unsafe_view aten.unsqueeze".split())


@dataclass(eq=False, slots=True)
class Value:
    """A tensor: memory, or an expression that its readers compute.

    Attributes:
        name: of its node.
        size: in bytes.
        rows: the lengths of its loops: the products of its last sizes, symbolic ones by their hints.
        dtype: of its elements.
        reads: what the expression loads, and which part of it; None: the value lies in memory.
        ops: what the expression computes.
        heavy: whether it is costly to compute twice.
        channels_last: whether it is laid out so.
    """

    name: str
    size: Size
    rows: frozenset[int]
    dtype: torch.dtype
    reads: frozenset[tuple[Value, Any]] | None = None
    ops: frozenset[Any] = frozenset()
    heavy: bool = False
    channels_last: bool = False

    @property
    def elements(self) -> int:
        """How many it has."""
        return max(self.rows)


@dataclass(eq=False, slots=True)
class Operation:
    """One loop nest, or one external kernel.

    Attributes:
        name: of the node that it ends with.
        makes: the values it puts into memory.
        reads: the values it takes from memory.
        rows: the lengths of its loops, as ``Value.rows``; none: external.
        whole: those of ``reads`` whose elements it reads where it writes.
        reduces: whether it has to end before its results can be read.
        scratch: bytes that it needs while it runs.
    """

    name: str
    makes: tuple[Value, ...]
    reads: frozenset[Value]
    rows: frozenset[int] = frozenset()
    whole: frozenset[Value] = frozenset()
    reduces: bool = False
    scratch: Size = 0


@dataclass(slots=True)
class Kernel:
    """Operations that run as one.

    Attributes:
        name: of its last operation.
        makes: values in memory afterwards.
        reads: values it takes from memory.
        whole: by result, those values whose place it may take: it is made in the last loop that reads them.
        scratch: bytes that it needs while it runs.
        frees: whether what has been read for the last time is freed after it.
    """

    name: str
    makes: tuple[Value, ...]
    reads: frozenset[Value]
    whole: Mapping[Value, frozenset[Value]] = field(default_factory=dict)
    external: bool = False
    scratch: Size = 0
    frees: bool = True


@dataclass(slots=True)
class Lowered:
    """A graph as kernels.

    Attributes:
        kernels: in order.
        inputs: the tensors it takes, by name.
        outputs: what it returns, in order; None for what is no tensor.
    """

    kernels: list[Kernel]
    inputs: dict[str, Value]
    outputs: list[Value | None]


def lower(gm: fx.GraphModule, *, lowering: str, channels_last: bool, half: adapter.Half | None) -> Lowered:
    """The kernels that a graph becomes.

    Args:
        lowering: "inductor", or "eager": every node is a kernel.
        channels_last: whether Inductor lays out forward's images so: what convolutions make, and what is saved.
        half: which one of ours the graph is: expressions may be longer there; None: it is plain torch.compile's.
    """
    eager = lowering == "eager"
    lowered = _Lowering(adapter.realize_limits(gm, half), eager, channels_last)
    for node in gm.graph.nodes:
        lowered.run(node)
    operations = lowered.operations
    if eager:
        kernels = [Kernel(o.name, o.makes, o.reads, external=True, scratch=o.scratch) for o in operations]
    else:
        kernels = _fuse(operations, {id(v) for v in lowered.outputs if v is not None})
        if lowered.on_cpu:  # loops up to the next external kernel are one C++ function
            for kernel, following in pairwise(kernels):
                kernel.frees = kernel.external or following.external
    return Lowered(kernels, lowered.inputs, lowered.outputs)


class _Lowering:
    """Walks a graph as Inductor does, and notes what is put into memory when."""

    def __init__(self, limits: adapter.RealizeLimits, eager: bool, channels_last: bool) -> None:
        self._limits, self._eager, self._channels_last = limits, eager, channels_last
        self._env: dict[fx.Node, Any] = {}
        self._parts: dict[fx.Node, Any] = {}  # of views: which part of the memory they are, None: all of it
        self._loops: set[Value] = set()  # what loops have put into memory
        self._reshaped: set[Value] = set()  # what loops make of these lies in the order of its sizes
        self.operations: list[Operation] = []
        self.inputs: dict[str, Value] = {}
        self.outputs: list[Value | None] = []
        self.on_cpu = False

    def run(self, node: fx.Node) -> None:
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
        kind = "external" if self._eager else _kind(node, name)
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
            self.operations.append(
                Operation(node.name, made, frozenset(v for v, _ in loads), largest.rows, reduces=True)
            )
        elif made:
            direct = [a for a in node.args if isinstance(a, fx.Node)]  # by place, even where two are one
            others = [n for n in node.all_input_nodes if n not in direct]
            values = _flat([self._env.get(n) for n in (*direct, *others)])
            for value in values:
                self._realize(value)
            if name == CONVOLUTION_BACKWARD and not self._eager:
                values[:2] = self._in_one_order(*values[:3])
            scratch = self._scratch(node, name, values, made)
            self.operations.append(Operation(node.name, made, frozenset(values), scratch=scratch))
        return makes if isinstance(results, (tuple, list)) else makes[0]

    def _in_one_order(self, gradient: Value, image: Value, weight: Value) -> list[Value]:
        """Gradient and image as a convolution's backward reads them: Inductor copies what lies in another order."""
        last = image.channels_last or weight.channels_last
        return [value if value.channels_last == last else self._copied(value, last) for value in (gradient, image)]

    def _copied(self, value: Value, channels_last: bool) -> Value:
        copied = replace(value, reads=frozenset({(value, None)}), channels_last=channels_last)
        self._realize(copied)
        return copied

    def _scratch(self, node: fx.Node, name: str, values: Sequence[Value], made: Sequence[Value]) -> Size:
        """What libraries on the CPU allocate inside an operator: oneDNN, and the backward of fused attention.

        oneDNN brings images into a layout of its own, unless they are channels-last; weights always. Measured.
        """
        fake = tensor_of(node.all_input_nodes[0]) if node.all_input_nodes else None
        if fake is None or fake.device.type != "cpu" or not values:
            return 0
        if name == "aten._scaled_dot_product_flash_attention_for_cpu_backward":
            return values[0].size
        if name == CONVOLUTION:
            image, weight = values[:2]
            made[0].channels_last = self._channels_last or image.channels_last
            return weight.size if made[0].channels_last else _larger(image.size + weight.size, made[0].size)
        if name == CONVOLUTION_BACKWARD:
            gradient, image, weight = values[:3]
            made[0].channels_last = image.channels_last or weight.channels_last
            return 2 * weight.size + sum(v.size for v in (gradient, image) if not v.channels_last)
        return 0

    def _view(self, node: fx.Node, name: str, source: Any) -> Any:
        if name == "getitem" and isinstance(source, tuple):
            index = argument(node, 1)
            return source[index] if isinstance(index, int) and index < len(source) else None
        if isinstance(source, tuple):
            return source
        operand = argument(node, 0)
        part = self._parts.get(operand) if isinstance(operand, fx.Node) else None  # type: ignore[arg-type]
        self._parts[node] = node if name in PARTS else part
        if name in RESHAPES:
            self._reshaped.add(source)
            if source in self._loops:
                source.channels_last = False
        if name in ("aten.as_strided", "fxapprox.in_memory", "fxapprox.fence"):
            self._realize(source)
        return source

    def _pointwise(self, node: fx.Node, name: str, result: torch.Tensor) -> Value:
        made = _in_memory(node.name, result)
        times = _unrolled(node, name)
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
        made.heavy = name in HEAVY or any(v.heavy for v in inlined)
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
        for at, operand in enumerate(operands):
            if operand.reads is not None:
                operand.reads, operand.ops, operand.heavy = frozenset({(made, at)}), frozenset(), False

    def _loads(self, node: fx.Node) -> frozenset[tuple[Value, Any]]:
        """What has to be read from memory to compute a node's operands."""
        found: set[tuple[Value, Any]] = set()
        unread = [argument(node, 1)] if op_name(node) in SHAPE_ALONE else ()
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
            or (
                nontrivial
                and len(users) > 1
                and any(_kind(u, op_name(u)) == "external" for u in users if not is_view(u))
            )
        ):
            self._realize(value)

    def _realize(self, value: Value | None) -> None:
        if value is None or value.reads is None:
            return
        reads = value.reads
        whole = frozenset(v for v, part in reads if part is None)
        self.operations.append(Operation(value.name, (value,), frozenset(v for v, _ in reads), value.rows, whole))
        self._loops.add(value)
        value.channels_last &= value not in self._reshaped
        value.reads, value.ops, value.heavy = None, frozenset(), False


def _fuse(operations: Sequence[Operation], returned: set[int]) -> list[Kernel]:
    """Loops that share a value become one kernel, the values in one loop alone get no memory.

    Neighbours do; and a loop goes back to one before external kernels where all that it reads was there already.
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
            and any(o.rows and _one_loop(operation.rows, o.rows) for o in groups[at])
        }
        ahead = _fitting(operation, takewhile(lambda o: o.rows, following))
        most = max((_shared(operation, [o]) for o in ahead), default=0)
        best = max(shared, key=lambda at: (shared[at], at), default=None)
        return best if best is not None and shared[best] > most else None

    for i, operation in enumerate(operations):
        if not operation.rows:
            for group, _ in open_groups:
                close(group)
            close([operation])
            open_groups = []
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
    across = any(v.channels_last for v in operation.makes)  # a loop over channels is none over pixels
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
        return Kernel(first.name, first.makes, first.reads, external=True, scratch=first.scratch)
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
    return Kernel(group[-1].name, makes, reads, whole)


def _one_loop(a: frozenset[int], b: frozenset[int]) -> bool:
    """Whether two loop nests are one, up to merging dimensions: (3, 4, 5) and (12, 5), but not (10, 6).

    Two images over different dimensions are, where merging leaves three: (16, 16, 32, 32) and (16, 2, 8, 1024).
    """
    return max(a) == max(b) and (a <= b or b <= a or len(a & b) > 3)


def _kind(node: fx.Node, name: str) -> str:
    if node.op == "output":
        return "output"
    if name in REDUCTIONS:
        return "pointwise" if _unrolled(node, name) > 1 else "reduction"
    if name in SCATTERS:  # it ends before it is read, as a reduction does
        return "external" if any(_selects(n) for n in node.all_input_nodes) else "reduction"
    rule = rule_of(node)
    if (
        name in POINTWISE
        or (rule is not None and rule.cheap)
        or torch.Tag.pointwise in getattr(node.target, "tags", ())
    ):
        return "pointwise"
    return "external"


def _selects(node: fx.Node) -> bool:
    """Whether it is a mask: as an index it has to be searched."""
    value = tensor_of(node)
    return value is not None and value.dtype in (torch.bool, torch.uint8)


def _unrolled(node: fx.Node, name: str) -> int:
    """How many elements a short reduction adds up; 1 for everything else."""
    source = argument(node, 0) if name in REDUCTIONS else None
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


def _larger(a: Size, b: Size) -> Size:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else sympy.Max(a, b)


def _flat(values: Iterable[Any]) -> list[Value]:
    return [v for value in values for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Value)]
