"""Makes functions of arithmetic on few numbers, such as a channel's statistics, and a call of each.

As an operator (``torch_adapter.small``) such arithmetic runs in Python: a quarter of a millisecond, twice a layer,
where a step around it has filled the processor's caches. Inductor would write it anew for every layer. As a function
(``invoke_subgraph``) it is compiled once for all that are alike, and takes some microseconds.

    before                                after

    s = statistics(mean, rstd)            f, g = view(mean, [-1]), view(rstd, [-1])
    scale = s[0]                          s = arithmetic_0(f, g)
                                          scale = s[0]

An operator is a region (``ir/regions.py``) of one node; its function is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.inline import Inliner, signature
from fxapprox.ir.joint import erase_unused
from fxapprox.ir.regions import Region, replace_by_calls
from fxapprox.ir.tensors import is_fixed_on_cpu, tensor_of


def call_arithmetic(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph that calls functions in place of small operators; in its functions their operators stand.

    Requires: a graph whose functions are its own.
    Ensures: inputs, outputs and all other operators are the same, in the same order.
    Changes numerics: no.

    The graph itself is returned where there is nothing to do. Small operators are left as they are on other devices
    than the CPU, and where sizes are symbolic.
    """
    for target in {node.target for node in gm.graph.find_nodes(op="get_attr")}:
        if isinstance(function := attrgetter(target)(gm), fx.GraphModule):
            _spell_out(function)
    functions: dict[Hashable, tuple[fx.GraphModule, list[int]]] = {}
    regions: dict[Hashable, list[Region]] = {}
    for node in _small_in(gm.graph):
        key = _key(node)
        if key not in functions:
            functions[key] = _function(node, gm)
        read = tuple(node.all_input_nodes[i] for i in functions[key][1])
        regions.setdefault(key, []).append(Region(read, (node,), (node,)))
    return replace_by_calls(gm, "arithmetic", [(functions[key][0], regions[key]) for key in regions], _call)


def _call(graph: fx.Graph, name: str, inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> list[fx.Node]:
    """Calls a function of flat operands; the tuple that it gives stands for what the operator gave."""
    (operator,) = results
    call = adapter.call_subgraph(graph, name, [_flat(node) for node in inputs])
    call.meta = {"val": operator.meta["val"]}
    adapter.rename(call, operator.name)
    return [call]


def _small_in(graph: fx.Graph) -> list[fx.Node]:
    return [
        node for node in graph.nodes
        if adapter.arithmetic_of(node.target) is not None and all(map(_can_be_passed, node.all_input_nodes))
    ]  # fmt: skip


def _can_be_passed(node: fx.Node) -> bool:
    value = tensor_of(node)
    return value is not None and is_fixed_on_cpu(value) and value.is_contiguous()


def _flat(node: fx.Node) -> fx.Node:
    """The operand of a call: in one dimension, as Inductor gives dimensions of one element strides of its own."""
    # a fresh name could be one that a code lists of what it was traced as
    flat = node.graph.create_node("call_function", torch.ops.aten.view.default, (node, [-1]), name=f"{node.name}_flat")
    flat.meta["val"] = node.meta["val"].view(-1)
    return flat


def _spell_out(function: fx.GraphModule) -> None:
    """Puts the operators of small ones in their place, as there is no calling from a function."""
    small = _small_in(function.graph)
    writer = Inliner(function)
    for node in small:
        results = writer.inline(_compute(node), node.all_input_nodes, before=node, key=_key(node))
        for part in list(node.users):
            part.replace_all_uses_with(results[part.args[1]])  # type: ignore[index]
    if small:
        erase_unused(function.graph)
        adapter.views_to_reshapes(function.graph)
        function.recompile()


def _compute(node: fx.Node) -> Callable[..., tuple[Tensor, ...]]:
    """The operator as a function of its tensors, which may be flat."""
    run, inputs = adapter.arithmetic_of(node.target), node.all_input_nodes
    assert run is not None

    def compute(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {n: tensor.view(n.meta["val"].shape) for n, tensor in zip(inputs, tensors, strict=True)}
        return run(*(given[arg] if isinstance(arg, fx.Node) else arg for arg in node.args))

    return compute


def _key(node: fx.Node) -> Hashable:
    """Equal for operators of which the functions are the same."""
    number = {source: f"%{i}" for i, source in enumerate(node.all_input_nodes)}
    args = tuple(number[arg] if isinstance(arg, fx.Node) else arg for arg in node.args)
    return node.target, args, tuple(signature(source.meta["val"]) for source in node.all_input_nodes)


def _function(node: fx.Node, gm: fx.GraphModule) -> tuple[fx.GraphModule, list[int]]:
    """The operator as a module, and which of its tensors this reads: of some only the type counts."""
    mode = adapter.fake_mode_of(gm)
    assert mode is not None
    flat = [source.meta["val"].view(-1) for source in node.all_input_nodes]
    function = adapter.trace(_compute(node), flat, mode)
    inputs = function.graph.find_nodes(op="placeholder")
    read = [i for i, given in enumerate(inputs) if given.users]
    for given in inputs:
        if not given.users:
            function.graph.erase_node(given)
    return adapter.function_of_ours(function.graph, function), read
