"""Graphs: the joint graph with its two halves told apart, tracing a function into a graph, and the verifier."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from fxapprox import torch_adapter as adapter
from fxapprox.arguments import argument, operands
from fxapprox.errors import UnsupportedGraph
from fxapprox.operators import is_label, is_view, op_name, table_use
from fxapprox.sizes import Size

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Joint:
    """A joint graph as AOTAutograd traces it: forward and backward in one graph, primals and tangents its inputs.

    Attributes:
        gm: the graph.
        num_fwd_outputs: how many of its outputs are forward's.
        static_inputs: positions of the inputs that stay where they are (parameters, buffers).
        gradients: names of the forward values that are gradients: those that a pass had forward compute.
        made: names of the inputs that are activations: other graphs of the model made them, and only backward would
            keep them.
        kept: names of the outputs that the model's next graph keeps alive, if backward reads them.
        backward: the nodes that need a tangent; every other node is a forward value.
    """

    gm: fx.GraphModule
    num_fwd_outputs: int
    static_inputs: tuple[int, ...] = ()
    gradients: frozenset[str] = frozenset()
    made: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    backward: frozenset[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        backward: set[fx.Node] = set()
        for node in self.gm.graph.nodes:
            pinned = adapter.is_tangent(node) or (node.op == "call_function" and adapter.must_be_in_backward(node))
            if pinned or any(source in backward for source in node.all_input_nodes):
                backward.add(node)
        object.__setattr__(self, "backward", frozenset(backward))

    @property
    def forward_values(self) -> Iterator[fx.Node]:
        """Every node that can be computed without a tangent, in order."""
        return (n for n in self.gm.graph.nodes if n.op != "output" and n not in self.backward)

    @property
    def alive(self) -> set[fx.Node]:
        """What is alive during backward anyway; views of it are, too."""
        given = (n for n in self.gm.graph.nodes if n.op in ("placeholder", "get_attr") and n.name not in self.made)
        return {*given, *(n for n in self.gm.graph.nodes if n.name in self.kept)}

    @property
    def outputs(self) -> tuple[list[Any], list[Any]]:
        """Forward's outputs and backward's (the gradients); entries may be None or numbers."""
        output = next(iter(self.gm.graph.find_nodes(op="output")))
        flat = adapter.flat_outputs(output)
        return flat[: self.num_fwd_outputs], flat[self.num_fwd_outputs :]


def erase_unused(graph: fx.Graph) -> None:
    """Erases what nobody reads, in one sweep; operators with effects stay."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph.erase_node(node)


def nodes_between(sources: Iterable[fx.Node], results: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """The operators that lead from ``sources`` (or from inputs) to ``results``, these among them."""
    seen, stack = set(sources), list(results)
    found = []
    while stack:
        node = stack.pop()
        if node not in seen and node.op == "call_function":
            seen.add(node)
            found.append(node)
            stack += node.all_input_nodes
    return tuple(found)


def tensor_of(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that stands for the node's value; None for tuples and scalars."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def element_of(node: fx.Node) -> torch.Tensor | None:
    """The node's fake tensor, or the first of a tuple that begins with one (split, unbind, attention)."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], torch.Tensor):
        return value[0]
    return tensor_of(node)


def is_float(dtype: torch.dtype) -> bool:
    """Whether numbers of this type may be a little off: floating point, complex ones as well."""
    return dtype.is_floating_point or dtype.is_complex


def symbolic_shape(value: torch.Tensor) -> tuple[Size, ...]:
    """The shape, symbolic sizes as expressions."""
    return tuple(adapter.expression(size) for size in value.shape)


def nbytes_expression(value: torch.Tensor) -> Size:
    """Bytes of a dense copy, as an expression of the symbolic sizes."""
    return math.prod(symbolic_shape(value)) * value.element_size()


def numel(value: torch.Tensor) -> int:
    """Number of elements, symbolic sizes by their hints."""
    count = value.numel()
    return count if type(count) is int else math.prod(adapter.hint(size) for size in value.shape)


def nbytes(value: torch.Tensor) -> int:
    """Bytes of a dense copy, symbolic sizes by their hints."""
    return numel(value) * value.element_size()


def flops(node: fx.Node) -> int:
    """Floating point operations of a product (convolution, matrix product, attention); 0 for every other operator."""
    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return 0
    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), _value_of)  # type: ignore[misc, arg-type]
    return int(adapter.hint(count(*args, **kwargs, out_val=node.meta.get("val"))))


def _value_of(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, fx.Node) else argument


def is_fixed_on_cpu(value: torch.Tensor) -> bool:
    """Whether it is on the CPU, and none of its sizes is a symbol."""
    return value.device.type == "cpu" and has_fixed_sizes(value)


def has_fixed_sizes(value: torch.Tensor) -> bool:
    """Whether none of its sizes is a symbol."""
    return all(isinstance(size, int) for size in value.shape)


def is_dense(value: torch.Tensor) -> bool:
    """Whether every element has a place of its own and there are no gaps between them."""
    expected = 1
    for size, stride in sorted(
        ((adapter.hint(n), adapter.hint(s)) for n, s in zip(value.shape, value.stride(), strict=True)),
        key=lambda pair: (pair[1], pair[0]),
    ):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def has_gaps(value: torch.Tensor) -> bool:
    """Whether the value lies in more memory than its elements take."""
    steps = ((adapter.hint(n) - 1) * adapter.hint(s) for n, s in zip(value.shape, value.stride(), strict=True))
    return 0 < numel(value) < 1 + sum(steps)


def memory_order(value: torch.Tensor) -> tuple[int, ...]:
    """Dimensions from the one with the largest stride to the one with the smallest."""
    strides = [adapter.hint(stride) for stride in value.stride()]
    sizes = [adapter.hint(size) for size in value.shape]
    return tuple(sorted(range(value.dim()), key=lambda d: (-strides[d], sizes[d] == 1, d)))


def storage_of(node: fx.Node) -> fx.Node:
    """The node whose memory this one's value lies in: itself, unless it is a view."""
    while node.op == "call_function" and is_view(node) and isinstance(source := argument(node, 0), fx.Node):
        if op_name(node) == "getitem" and not is_view(source):
            return node  # one output of an operator with several
        node = source
    return node


def source_line(node: fx.Node) -> str:
    """The user's line that made the node, as "file.py:12 in forward: code"; "" if unknown or our own."""
    return _last_line(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=4096)
def _last_line(trace: str) -> str:
    lines = [line.strip() for line in trace.strip().splitlines()]
    for place, code in zip(reversed(lines[:-1]), reversed(lines[1:]), strict=True):
        if place.startswith("File "):
            file, line, where = [*place.split(", "), "", ""][:3]
            path = Path(file.removeprefix("File ").strip('"'))
            return "" if path.parent == PACKAGE else f"{path.name}:{line.removeprefix('line ')} {where}: {code}"
    return ""


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node, as in ``named_modules``; "" at the top."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    return _plain_path(str(next(reversed(stack.values()))[0])) if stack else ""


@lru_cache(maxsize=4096)
def _plain_path(path: str) -> str:
    path = path.replace("_modules", "")
    path = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path)
    path = re.sub(r"\.+", ".", path).strip(".")
    # what comes before the model: the name of a local variable, or the cell of a closure
    return re.sub(r"^((.*\.)?cell_contents|[LG]\.\w+)(\.|$)", "", path)


class Inliner:
    """Traces functions and splices them into one graph; a function traced before for equal inputs is not traced again.

    Equal layers make equal codecs, and tracing is what costs time. Several graphs of one shape environment may share
    their traces.
    """

    def __init__(self, gm: fx.GraphModule, traces: dict[Hashable, fx.GraphModule]) -> None:
        self._gm, self._traces = gm, traces
        self._symbols = adapter.size_symbols(gm)
        self._mode = adapter.fake_mode_of(gm)

    def inline(
        self, fn: Callable[..., Any], args: Sequence[fx.Node], *, before: fx.Node, key: Hashable
    ) -> tuple[fx.Node, ...]:
        """Traces ``fn`` over the values of ``args`` and puts its nodes before a node.

        The nodes get their metadata from the trace. Symbolic sizes that the graph takes as inputs are at hand in the
        trace, so ``fn`` may use symbolic shapes that no operand has.

        Args:
            fn: from tensors to a tuple of tensors.
            key: says what ``fn`` does, apart from the shapes of its inputs; other symbolic sizes as expressions.

        Returns: the nodes that hold what ``fn`` returns.
        """
        inputs = [*args, *(n for n in self._symbols if n not in args)]
        traced = self._trace(fn, inputs, len(args), key)
        env: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
        result: tuple[fx.Node, ...] = ()
        with self._gm.graph.inserting_before(before):
            for node in traced.graph.nodes:
                if node.op == "output":
                    result = tuple(env[n] for n in node.args[0])
                elif node.op == "get_attr":
                    raise UnsupportedGraph("inline", f"a codec captured the tensor {node.target!r}; use torch.full")
                elif node.op != "placeholder":
                    env[node] = adapter.copy_node(node, self._gm.graph, env.__getitem__)
        return result

    def _trace(self, fn: Callable[..., Any], inputs: Sequence[fx.Node], count: int, key: Hashable) -> fx.GraphModule:
        if self._mode is None:
            raise UnsupportedGraph("inline", "the graph has no tensor")
        values = [n.meta["val"] for n in inputs]
        full_key = key, tuple(map(signature, values))
        if full_key not in self._traces:
            traced = adapter.trace(lambda *given: fn(*given[:count]), values, self._mode)
            erase_unused(traced.graph)
            self._traces[full_key] = traced
        return self._traces[full_key]


def signature(value: Any) -> Hashable:
    """Equal for values of which a trace is the same: tensors, and symbolic sizes by their expressions."""
    if not isinstance(value, torch.Tensor):
        return adapter.expression(value)
    strides = tuple(map(adapter.expression, value.stride()))
    return symbolic_shape(value), strides, value.dtype, value.device


def verify(backward: fx.GraphModule, approximate: Mapping[fx.Node, str]) -> None:
    """Proves that nothing in the backward graph decides on an approximate value.

    Follows every decoded value forward as long as no tangent is involved, and raises where an operator that needs
    its operand exactly (a comparison, a divisor, an unknown operator) would read one.

    Args:
        approximate: the decoded values, and the names of those that they stand for.

    Raises:
        UnsupportedGraph: such an operator exists; the message names it, and the error has the values that it reads.
    """
    tainted = {node: frozenset((name,)) for node, name in approximate.items()}
    gradient: set[fx.Node] = {n for n in backward.graph.nodes if adapter.is_tangent(n)}
    for node in backward.graph.nodes:
        if node.op in ("placeholder", "output") or node in approximate:
            continue
        touched = [(position, source) for position, source in operands(node) if source in tainted]
        if any(source in gradient for source in node.all_input_nodes):
            gradient.add(node)
        elif touched:
            tainted[node] = frozenset[str]().union(*(tainted[source] for _, source in touched))
        value = tensor_of(node)
        decides = value is not None and (not is_float(value.dtype) or is_label(node))
        if touched and node not in gradient and decides:
            raise UnsupportedGraph(
                "verify", f"{op_name(node)} would take a decision from an approximate value",
                node=node.name, source=source_line(node), values=_read(touched, tainted),
            )  # fmt: skip
        for position, source in touched:
            if table_use(node, position) is None:
                raise UnsupportedGraph(
                    "verify", f"unknown operator {op_name(node)} reads the approximate value {source.name!r}",
                    node=node.name, source=source_line(node), values=_read(touched, tainted),
                )  # fmt: skip


def _read(operands: Iterable[tuple[int, fx.Node]], tainted: Mapping[fx.Node, frozenset[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for _, source in operands for name in tainted[source]}))
