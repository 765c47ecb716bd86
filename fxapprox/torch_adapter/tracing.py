# pyright: reportPrivateImportUsage=false
"""Functions as graphs, nodes in graphs, and tensors without memory."""

from __future__ import annotations

import contextlib
import functools
import operator
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sympy
import torch
from torch import fx
from torch._guards import TracingContext, tracing
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import PowByNatural

from fxapprox.torch_adapter.speedups.inlined import inlined


def fake_mode_of(gm: fx.GraphModule) -> FakeTensorMode | None:
    """The fake mode that the graph was traced under, or None for a graph without tensors."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return None


def trace(fn: Callable[..., Any], values: Sequence[Any], fake_mode: FakeTensorMode) -> fx.GraphModule:
    """``fn`` as an FX graph over ``values`` (fake tensors and symbolic sizes), in Inductor's decompositions."""
    with fake_mode, _quiet_symbols(fake_mode), _any_product_of_sizes():
        return make_fx(fn, decomposition_table=select_decomp_table(), tracing_mode="real")(*values)


def lazy_modules() -> AbstractContextManager[None]:
    """Makes Python of graph modules when they are first called, as under Inductor: most never are."""
    return _use_lazy_graph_module(True)


TRACES = "_fxapprox_traces"  # where a fake mode keeps them


@contextlib.contextmanager
def sharing_traces(fake_mode: FakeTensorMode | None) -> Iterator[None]:
    """Lets all graphs of a fake mode share what is traced meanwhile. Then it goes: what is compiled keeps its mode."""
    if fake_mode is None or TRACES in vars(fake_mode):
        yield
        return
    keep_traces(fake_mode)
    try:
        yield
    finally:
        del vars(fake_mode)[TRACES]


def keep_traces(fake_mode: FakeTensorMode) -> dict[Hashable, fx.GraphModule]:
    """What is traced under a fake mode from now on, by what it does, for as long as the mode is there."""
    return vars(fake_mode).setdefault(TRACES, {})


def traces_of(fake_mode: FakeTensorMode | None) -> dict[Hashable, fx.GraphModule]:
    """What is shared by all graphs of a fake mode now; a place for the caller's own where nothing is."""
    return {} if fake_mode is None else vars(fake_mode).get(TRACES, {})


def copy_node(node: fx.Node, graph: fx.Graph, env: Callable[[fx.Node], Any]) -> fx.Node:
    """``graph.node_copy`` without its search of every argument for symbolic sizes, which takes most of its time.

    For operators with arguments that have been checked once already, when they were traced.
    """
    args, kwargs = map_arg(node.args, env), map_arg(node.kwargs, env)
    name = graph._graph_namespace.create_name(node.name, None)
    copied = fx.Node(graph, name, node.op, node.target, args, kwargs, node.type)  # type: ignore[arg-type]
    copied.meta = node.meta.copy()
    graph._graph_namespace.associate_name_with_obj(name, copied)
    graph._insert(copied)
    graph._find_nodes_lookup_table.insert(copied)
    graph._len += 1
    return copied


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and for each of its nodes the one that is the copy."""
    copied, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        copies[node] = copy_node(node, copied, copies.__getitem__)
    return copied, copies


def copy_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph module, with a graph of its own."""
    copied = _make_graph_module(gm, copy_graph(gm.graph)[0])
    copied.meta.update(gm.meta)
    return copied


def function_of_ours(graph: fx.Graph, attributes: Any) -> fx.GraphModule:
    """A module to be called by one of the functions below; ``attributes``: whence what the graph gets comes."""
    views_to_reshapes(graph)
    made = fx.GraphModule(attributes, graph)
    made.meta["fxapprox_function"] = True
    return made


def views_to_reshapes(graph: fx.Graph) -> None:
    """Makes reshapes of a function's views, as Inductor does in graphs: operands may lie otherwise than when traced."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def is_function_of_ours(gm: fx.GraphModule) -> bool:
    """Whether :func:`function_of_ours` has made it, or what it is a copy of."""
    return gm.meta.get("fxapprox_function", False)


def call_function(graph: fx.Graph, name: str, inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> list[fx.Node]:
    """Calls a graph module, an attribute of the graph's, at the graph's end; what it gives stands for ``results``.

    Inductor compiles it once for all of its calls.
    """
    return _results_of(call_subgraph(graph, name, inputs), results)


def call_subgraph(graph: fx.Graph, name: str, inputs: Sequence[fx.Node]) -> fx.Node:
    """A call of a graph module, an attribute of the graph's; it gives a tuple."""
    return graph.call_function(torch.ops.higher_order.invoke_subgraph, (graph.get_attr(name), name, *inputs))


def call_inlined(graph: fx.Graph, name: str, inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> list[fx.Node]:
    """As :func:`call_function`, for pointwise operators: Inductor fuses them with what reads them."""
    return _results_of(graph.call_function(inlined, (graph.get_attr(name), *inputs)), results)


def _results_of(call: fx.Node, results: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes for the results of a call, each under the name of what it stands for."""
    call.meta["val"] = tuple(node.meta["val"] for node in results)
    found = []
    for number, node in enumerate(results):
        found.append(call.graph.create_node("call_function", operator.getitem, (call, number), name=node.name))
        found[-1].meta = node.meta.copy()
    return found


def rename(node: fx.Node, name: str) -> None:
    """Gives a node a name that says what it is (with a number behind it, if the graph has that name already)."""
    node._rename(name)


def name_part(node: fx.Node, value: str, number: int) -> None:
    """Names a part of a value's code after the value, so that :func:`is_part` knows it in Inductor, too."""
    rename(node, f"{value}_code_{number}")


def is_part(name: str) -> bool:
    """Whether something of this name is a part of a code."""
    return re.search(r"_code_\d+(_\d+)?$", name) is not None


def take_place(node: fx.Node, old: fx.Node) -> None:
    """Puts a node of the same graph in place of another one, under its name: they stand for the same value."""
    old.replace_all_uses_with(node)
    old.graph.erase_node(old)
    node.name = old.name  # taken in the graph's namespace, and free


@contextlib.contextmanager
def _quiet_symbols(fake_mode: FakeTensorMode) -> Iterator[None]:
    """Codecs make no unbacked symbols; none may be left pending in the graph's shape environment."""
    env = fake_mode.shape_env
    with env.ignore_fresh_unbacked_symbols() if env is not None else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _any_product_of_sizes() -> Iterator[None]:
    """Has torch find sizes of any number of factors in what it traces; by itself it knows those of two."""
    plain = proxy_tensor._sympy_handlers
    known = {
        **plain(),
        sympy.Mul: lambda *factors: functools.reduce(operator.mul, factors),
        sympy.Pow: operator.pow,
        PowByNatural: operator.pow,
    }
    proxy_tensor._sympy_handlers = lambda: known
    try:
        yield
    finally:
        proxy_tensor._sympy_handlers = plain


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors in a value, through lists, tuples and dicts."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The value with other tensors, through lists, tuples and dicts."""
    return pytree.tree_map_only(torch.Tensor, change, value)


NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)  # what code on a fake tensor raises then


def fake_mode() -> FakeTensorMode:
    """A mode whose fake tensors may meet tensors that have memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(tensor: torch.Tensor, mode: FakeTensorMode, device: torch.device) -> torch.Tensor:
    """A fake tensor of this device, otherwise like the given one; parameters stay parameters."""
    with mode:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def in_this_compilation(inputs: Sequence[Any]) -> Callable[[], AbstractContextManager[None]]:
    """What enters, later, the context in which Dynamo compiles now: its fake mode, and which sizes are symbolic.

    Args:
        inputs: those of the graph that is compiled; they stay alive with what is returned.
    """
    found = TracingContext.get()
    contexts = found.tensor_to_context
    known = [(x, contexts[x]) for x in inputs if isinstance(x, torch.Tensor) and x in contexts]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        for tensor, context in known:
            contexts[tensor] = context
        with tracing(found):
            yield

    return again
