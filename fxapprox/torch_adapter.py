# pyright: reportPrivateImportUsage=false
"""The only file that imports private torch modules. Known to work: torch 2.13; written for 2.11 to 2.15.

Everything fxapprox needs of Dynamo, AOTAutograd and Inductor passes through here, under names of our own, so that
a torch release that moves something breaks one file.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import operator
import os
import re
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import numpy
import sympy
import torch
import torch._dynamo.config as dynamo_config
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
import torch._inductor.inductor_prims
from functorch.compile import make_boxed_func
from torch import fx
from torch._dynamo import maybe_mark_dynamic
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import ShortenTraceback, TorchDynamoException, TorchRuntimeError
from torch._dynamo.utils import counters, graph_break_reasons
from torch._functorch import partitioners
from torch._inductor import list_mode_options
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.virtualized import V
from torch._logging import trace_structured
from torch._logging._internal import trace_log
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo

from fxapprox.sizes import Size, SizeSymbol

Half = Literal["forward", "backward"]
Partition = tuple[fx.GraphModule, fx.GraphModule]
Partitioner = Callable[..., Partition]


# --- the joint graph -----------------------------------------------------------------------------


def prepare_joint(gm: fx.GraphModule) -> None:
    """What torch's own partitioner does to a joint graph before it chooses what to save. Mutates ``gm``."""
    gm.graph.eliminate_dead_code()
    gm.recompile()
    if functorch_config.cse:
        gm.graph = partitioners.fx_graph_cse(gm.graph)
    partitioners.force_save_collectives(gm)
    partitioners.force_save_effectful_ops(gm)
    partitioners.force_save_bw_mutation_src(gm)
    if partitioners.has_recomputable_ops(gm):
        partitioners.cleanup_recompute_tags(gm, is_default_partition=False)


def flat_outputs(output: fx.Node) -> list[Any]:
    """What an output node returns, flattened; None stays."""
    return pytree.tree_leaves(output.args[0], is_leaf=lambda x: x is None)


def is_tangent(node: fx.Node) -> bool:
    """Whether a placeholder of the joint graph is an incoming gradient (or a seed that only backward has)."""
    return node.op == "placeholder" and ("tangents" in str(node.target) or partitioners._is_bwd_seed_offset(node))


def must_be_in_backward(node: fx.Node) -> bool:
    """Whether torch has pinned the node to the backward graph (mutations of backward)."""
    return partitioners._must_be_in_backward(node)


def traced_half(node: fx.Node) -> Half | None:
    """The half of the joint graph that the node was traced in, copies included; None: a pass has made it."""
    tag = node.meta.get("partitioner_tag")
    return "forward" if tag == "is_forward" else "backward" if tag else None


def must_recompute(node: fx.Node) -> bool:
    """Whether the user's ``torch.utils.checkpoint`` region, or its policy, wants the value computed again."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return partitioners.must_recompute(node)


def must_save(node: fx.Node) -> bool:
    """Whether torch wants the value saved, never recomputed (collectives, effects, selective checkpoints)."""
    policy = node.meta.get("recompute")
    return policy is not None and policy.name in ("MUST_SAVE", "PREFER_SAVE")


def is_symbolic_scalar(node: fx.Node) -> bool:
    """Whether the node is a SymInt, SymFloat or SymBool."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def is_operator(target: object) -> bool:
    """Whether a node's target is an operator of the dispatcher."""
    return isinstance(target, torch._ops.OpOverload)


def mutates(node: fx.Node) -> bool:
    """Whether the node's operator writes to one of its operands; unknown callables may."""
    return not is_operator(node.target) or node.target._schema.is_mutable  # type: ignore[union-attr]


def changed_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The inputs that a forward graph, or what runs it, writes to: buffers, and the user's tensors."""
    inputs = graph.find_nodes(op="placeholder")
    changed = {
        node.args[0] for node in graph.nodes
        if node.op == "call_function" and is_operator(node.target) and mutates(node) and node.args
    }  # fmt: skip
    (output,) = graph.find_nodes(op="output")
    told = [getattr(about, "mutated_input", None) for about in output.meta.get("desc") or ()]
    return {node for node in inputs if node in changed or (told and node.meta.get("desc") in told)}


def is_opaque(node: fx.Node) -> bool:
    """Whether the node is a script object or another value that is not a tensor and travels as it is."""
    check = getattr(partitioners, "is_opaque_node", None)
    return bool(check and check(node))


def default_saved(gm: fx.GraphModule, *, num_fwd_outputs: int, static_inputs: Sequence[int] | None) -> list[fx.Node]:
    """The values torch's own minimum cut would save from this (prepared) joint graph."""
    info = partitioners.classify_nodes(gm, list(static_inputs or ()), num_fwd_outputs)
    if not info.required_bw_nodes:
        return []
    for node in reversed(gm.graph.nodes):
        if node.op == "output":
            node.dist_from_bw = int(1e9)
        elif not info.is_required_fw(node):
            node.dist_from_bw = 0
        else:
            node.dist_from_bw = min((user.dist_from_bw + 1 for user in node.users), default=int(1e9))
    return partitioners.choose_saved_values_set(gm.graph, info, memory_budget=1)


def prefers_channels_last(gm: fx.GraphModule) -> bool:
    """Whether Inductor lays out the images of this graph channels-last."""
    from torch._inductor.graph import GraphLowering

    return GraphLowering.decide_layout_opt(gm, is_inference=False)


class RealizeLimits(NamedTuple):
    """How long an expression may grow before Inductor puts it into memory.

    Attributes:
        reads: loads, of an expression with several readers.
        all_reads: loads, of any expression.
        ops: operations.
    """

    reads: int
    all_reads: int
    ops: int


# At least these, for graphs of ours. A code and what is stored for its group or channel are up to six loads in place of
# one: decoding it again takes less time than writing the value, and less memory. The others are Inductor's own on CPUs;
# under those of GPUs (8, 30), and of CPUs before torch 2.13, a threshold code is written to memory before it is packed.
OUR_LIMITS: dict[Half, RealizeLimits] = {
    "forward": RealizeLimits(reads=0, all_reads=12, ops=50),
    "backward": RealizeLimits(reads=8, all_reads=12, ops=50),
}


def realize_limits(gm: fx.GraphModule, half: Half | None) -> RealizeLimits:
    """Inductor's limits for the device of this graph, as they are set, and for this half of one of ours."""
    values = (node.meta.get("val") for node in gm.graph.nodes)
    on_cpu = next((value.device.type == "cpu" for value in values if isinstance(value, torch.Tensor)), True)
    config: Any = inductor_config
    names = ("realize_cpu_acc_reads_threshold", "realize_cpu_opcount_threshold") if on_cpu else (
        "_realize_acc_reads_threshold_default", "_realize_opcount_threshold_default"
    )  # fmt: skip
    reads, ops = (getattr(config, name, default) for name, default in zip(names, (8, 30), strict=True))
    found = RealizeLimits(
        config.realize_reads_threshold,
        getattr(config, "realize_acc_reads_threshold", None) or reads,
        getattr(config, "realize_opcount_threshold", None) or ops,
    )
    return found if half is None else RealizeLimits(*map(max, zip(found, OUR_LIMITS[half], strict=True)))


def split(
    gm: fx.GraphModule, saved: Sequence[fx.Node], *, num_fwd_outputs: int, static_inputs: Sequence[int] | None
) -> Partition:
    """Forward and backward graphs that save exactly ``saved`` and recompute the rest.

    The forward returns the user's outputs, then the saved tensors, opaque objects and symbolic sizes; the backward
    takes symbolic sizes, then the saved tensors, then the tangents (AOTAutograd's convention).
    """
    info = partitioners.classify_nodes(gm, list(static_inputs or ()), num_fwd_outputs)
    scalars = [n for n in saved if is_symbolic_scalar(n) and not _is_only_asserted(n)]
    opaque = [n for n in saved if is_opaque(n)]
    tensors = [n for n in saved if not is_symbolic_scalar(n) and not is_opaque(n)]
    opaque_nodes: dict[str, Any] = {"saved_opaque_nodes": opaque} if opaque else {}  # since torch 2.12
    forward, backward = partitioners._extract_fwd_bwd_modules(
        gm,
        tensors,
        saved_sym_nodes=scalars,
        **opaque_nodes,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_nodes=info.static_lifetime_input_nodes,
    )
    forward.graph.eliminate_dead_code(_has_effect)
    # torch leaves copies of forward's effects in backward, collectives among them, wherever their operands are at hand
    backward.graph.eliminate_dead_code(lambda node: _has_effect(node) and not _is_copy(node))
    unread = {node.name for node in backward.graph.find_nodes(op="placeholder") if not node.users}
    if any(node.name in unread for node in tensors):  # nothing else read them
        left = [node for node in saved if node.name not in unread]
        return split(gm, left, num_fwd_outputs=num_fwd_outputs, static_inputs=static_inputs)
    return forward, backward


def _is_only_asserted(node: fx.Node) -> bool:
    """Whether a condition is read by assertions alone; torch before 2.13 saves those like others."""
    check = getattr(partitioners, "_is_assert_only_symbool", None)
    return bool(check and check(node))


def _has_effect(node: fx.Node) -> bool:
    """Whether the node has to stay though nobody reads it; torch keeps what is random, unless it is compiling."""
    return node.is_impure(impure_random=inductor_config.fallback_random)


def _is_copy(node: fx.Node) -> bool:
    """Whether an operator in a backward graph is one of forward's."""
    return node.op == "call_function" and traced_half(node) == "forward"


def finish_split(forward: fx.GraphModule, backward: fx.GraphModule) -> Partition:
    """Orders the two graphs as torch's own partitioner leaves them."""
    backward = partitioners.reordering_to_mimic_autograd_engine(backward)
    forward, backward = partitioners.raise_getitems(forward), partitioners.raise_getitems(backward)
    forward = partitioners.thread_graphsafe_rng_from_hops(forward, is_backward=False)
    backward = partitioners.thread_graphsafe_rng_from_hops(backward, is_backward=True)
    return forward, backward


def exact_partition(gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any) -> Partition:
    """torch's own partition: nothing is encoded."""
    return partitioners.min_cut_rematerialization_partition(gm, joint_inputs, compiler="inductor", **kwargs)


def activation_memory_budget(fraction: float) -> contextlib.AbstractContextManager[None]:
    """torch's own budget, for what is compiled inside: recomputation alone."""
    return functorch_config.patch(activation_memory_budget=fraction)


def fp8_activations() -> contextlib.AbstractContextManager[None]:
    """torch's own codes for what is compiled inside: e4m3 with a scale for each row, for floats of any size."""
    settings = {"quant_type": "torch.float8_e4m3fn", "use_scaling": True, "size_in_mb": 0, "exclude_primals": True,
                "allowed_dtypes": "torch.float32;torch.bfloat16;torch.float16"}  # fmt: skip
    return inductor_config.patch(post_grad_fusion_options={"activation_quantization_aten_pass": settings})


def kernels_in_profiles() -> contextlib.AbstractContextManager[None]:
    """Has Inductor write C++ kernels that PyTorch's profiler sees, each under its own name."""
    return inductor_config.patch({"cpp.enable_kernel_profile": True})


# --- tracing a function into a graph -------------------------------------------------------------


def fake_mode_of(gm: fx.GraphModule) -> FakeTensorMode | None:
    """The fake mode that the graph was traced under, or None for a graph without tensors."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return None


def trace(fn: Callable[..., Any], values: Sequence[Any], fake_mode: FakeTensorMode) -> fx.GraphModule:
    """``fn`` as an FX graph over ``values`` (fake tensors and symbolic sizes), in Inductor's decompositions."""
    with fake_mode, _quiet_symbols(fake_mode):
        return make_fx(fn, decomposition_table=select_decomp_table(), tracing_mode="real")(*values)


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


def call_function(graph: fx.Graph, name: str, inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> list[fx.Node]:
    """Calls a graph module, an attribute of the graph's, at the graph's end; what it gives stands for ``results``.

    Inductor compiles it once for all of its calls.
    """
    call = graph.call_function(torch.ops.higher_order.invoke_subgraph, (graph.get_attr(name), name, *inputs))
    call.meta["val"] = tuple(node.meta["val"] for node in results)
    found = []
    for number, node in enumerate(results):
        found.append(graph.create_node("call_function", operator.getitem, (call, number), name=node.name))
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


def materialize(x: torch.Tensor) -> torch.Tensor:
    """``x``, computed once into memory: Inductor would compute it again for every element that reads it."""
    return torch.ops.prims.inductor_force_stride_order(x, x.stride())


def code_in_memory(codes: torch.Tensor) -> torch.Tensor:
    """``codes``, bytes, computed once into memory in whatever layout suits what they are computed from."""
    return IN_MEMORY(codes)


_LIBRARY = torch.library.Library("fxapprox", "DEF")
_LIBRARY.define("in_memory(Tensor(a) x) -> Tensor(a)")
_LIBRARY.impl("in_memory", lambda x: x, "CompositeExplicitAutograd")
# Nothing but a word to Inductor: the operand, computed once into memory, in whatever layout suits its surroundings.
IN_MEMORY = torch.ops.fxapprox.in_memory.default
_LIBRARY.define("fence(Tensor(a) x) -> Tensor(a)")
_LIBRARY.impl("fence", lambda x: x, "CompositeExplicitAutograd")
# The operand; Inductor fuses nothing across it.
FENCE = torch.ops.fxapprox.fence.default


Rows = Sequence[Any]
Arithmetic = Callable[..., tuple[Rows, Rows]]


def small(arguments: str, kept: Sequence[torch.dtype | None] = ()) -> Callable[[Arithmetic], Arithmetic]:
    """Makes an operator of arithmetic on a few numbers, such as a channel's statistics, for graphs on the CPU.

    Inductor calls it instead of writing C++ for each of its operators, which takes it longer than the elements' own
    code. There it runs on numpy's arrays, which are quicker at few numbers. On other devices each operator would be a
    launch: there the function is traced as it stands, and its rows are put into memory.

    The function takes tensors or arrays (of at least 32 bits where they are floats), and gives rows, which are
    broadcast together, and what is kept.

    Args:
        arguments: the schema's, "Tensor mean, int bits".
        kept: the types of what it returns behind its rows; None: as it is.
    """

    def decorate(compute: Arithmetic) -> Arithmetic:
        name = compute.__name__.strip("_")

        def stored(rest: Rows) -> list[torch.Tensor]:
            return [each if dtype is None else each.to(dtype) for each, dtype in zip(rest, kept, strict=True)]

        def stacked(*args: Any) -> Any:
            if all(type(arg) in PLAIN for arg in args):
                with numpy.errstate(all="ignore"):  # of values that are not finite
                    rows, rest = compute(*map(_array, args))
                stack = numpy.empty((len(rows), *numpy.broadcast(*rows).shape), rows[0].dtype)
                for number, row in enumerate(rows):
                    stack[number] = row
                together, *rest = map(torch.from_numpy, (stack, *map(numpy.asarray, rest)))
            else:
                rows, rest = compute(*args)
                together = torch.stack(torch.broadcast_tensors(*rows))
            return (together, *stored(rest)) if kept else together

        _LIBRARY.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * (1 + len(kept)))})")
        _LIBRARY.impl(name, stacked, "CompositeExplicitAutograd")

        @functools.wraps(compute)
        def called(*args: Any) -> tuple[Rows, Rows]:
            if any(arg.device.type != "cpu" for arg in args if isinstance(arg, torch.Tensor)):
                rows, rest = compute(*args)
                return [materialize(row) for row in rows], stored(rest)
            found = getattr(torch.ops.fxapprox, name).default(*args)
            together, *rest = found if kept else (found,)
            return [together[row] for row in range(together.shape[0])], rest

        return called

    return decorate


PLAIN = {torch.Tensor, torch.nn.Parameter, int, type(None)}  # what needs no tracing; a fake tensor has no memory


def _array(x: Any) -> Any:
    """A tensor as a numpy array; anything else as it is."""
    if type(x) in (int, type(None)):
        return x
    return (x.float() if x.dtype is torch.bfloat16 else x).detach().numpy()  # numpy has no bfloat16


def _lower_hints() -> None:
    """Tells Inductor what IN_MEMORY and FENCE mean."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering

    class Fence(ir.ExternKernel):
        """An external kernel that says it writes to its operand, and does nothing."""

        def __init__(self, operand: Any) -> None:
            layout = ir.NoneLayout(device=operand.get_device())
            super().__init__(None, layout, self.unwrap_storage([operand]), ())
            V.graph.mark_buffer_mutated(operand.get_name())
            self.name = V.graph.register_buffer(self)
            V.graph.register_operation(self)

        def codegen(self, wrapper: Any) -> None:
            pass

        def should_allocate(self) -> bool:
            return False

        def get_mutation_names(self) -> Sequence[str]:
            return [self.input_name(0)]

    def in_memory(x: Any) -> Any:
        x.realize()
        if x.get_dtype() == torch.uint8:
            _codes_of(V.graph).add(x.get_name())
        return x

    def fence(x: Any) -> Any:
        x.realize()
        Fence(x)
        return x

    meanings: dict[Any, Callable[..., Any]] = {IN_MEMORY: in_memory, FENCE: fence}
    for target, lower in meanings.items():
        if target not in lowerings:
            register_lowering(target, type_promotion_kind=None)(lower)


def _codes_of(graph: Any) -> set[str]:
    """The buffers of a graph in Inductor that hold codes before they are packed."""
    return vars(graph).setdefault("_fxapprox_codes", set())


def hint(size: Any) -> int:
    """A size as a number: symbolic sizes by their hint."""
    if isinstance(size, int):
        return size
    value = size.node.hint if size.node.has_hint() else None
    return int(value) if value not in (None, int_oo) else 1


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors in a value, through lists, tuples and dicts."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The value with other tensors, through lists, tuples and dicts."""
    return pytree.tree_map_only(torch.Tensor, change, value)


@contextlib.contextmanager
def marked_dynamic(tensors: Sequence[torch.Tensor], dimensions: Sequence[Sequence[int]]) -> Iterator[None]:
    """Has Dynamo take these dimensions of these tensors as symbolic, and as numbers where the code makes it."""
    before = [dict(vars(tensor)) for tensor in tensors]
    try:
        for tensor, dims in zip(tensors, dimensions, strict=True):
            maybe_mark_dynamic(tensor, list(dims))
        yield
    finally:
        for tensor, attributes in zip(tensors, before, strict=True):
            vars(tensor).clear()
            vars(tensor).update(attributes)


def size_symbols(gm: fx.GraphModule) -> list[fx.Node]:
    """The graph's symbolic-size inputs."""
    return [n for n in gm.graph.nodes if n.op == "placeholder" and is_symbolic_scalar(n)]


def expression(size: Any) -> Size:
    """A size as an int, or as an expression of the shape environment's symbols where it is not static."""
    if isinstance(size, int):
        return size
    expr = sympy.sympify(size.node.expr)
    return int(expr) if expr.is_Integer else expr


def dynamic_sizes(gm: fx.GraphModule) -> tuple[SizeSymbol, ...]:
    """The dynamic dimensions that the graph was traced with."""
    env = _shape_env(gm)
    return () if env is None else tuple(_size_symbol(env, symbol) for symbol in env.var_to_range)


def size_conditions(gm: fx.GraphModule) -> tuple[sympy.Basic, ...]:
    """What the sizes have to fulfil for the graph to serve them; the ranges of single symbols are not repeated."""
    env = _shape_env(gm)
    return () if env is None else tuple(guard.expr for guard in env.guards)


def _shape_env(gm: fx.GraphModule) -> Any:
    mode = fake_mode_of(gm)
    return mode.shape_env if mode is not None else None


def _size_symbol(env: Any, symbol: sympy.Symbol) -> SizeSymbol:
    known = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val  # renamed in torch 2.10
    bounds = env.var_to_range[symbol]
    hint = known.get(symbol)
    sources = [_source_text(source) for source in env.var_to_sources.get(symbol, ())]
    return SizeSymbol(
        name=symbol.name,
        hint=int(hint) if hint is not None and hint.is_Integer else 1,  # unbacked: as `hint` has it
        source=" = ".join(dict.fromkeys(sources)),
        low=int(bounds.lower) if bounds.lower.is_Integer else 1,
        high=int(bounds.upper) if bounds.upper.is_Integer else None,
    )


def input_names(gm: fx.GraphModule) -> tuple[str, ...]:
    """What the user calls the inputs of a Dynamo graph: "blocks.0.weight" for parameters, "args[0]"; "" if unknown."""
    return tuple(_input_name(getattr(node, "_dynamo_source", None)) for node in gm.graph.find_nodes(op="placeholder"))


def _input_name(source: Any) -> str:
    if source is None:
        return ""
    name = str(source.name() if callable(source.name) else source.name)  # a property since torch 2.10
    name = re.sub(r"\._(?:modules|parameters|buffers)\['([^']*)'\]", r".\1", name)
    name = re.sub(r"\.__closure__\[\d+\]\.cell_contents$", "", name)  # a variable of a function: the function
    name = re.sub(r"^.*cell_contents\.|^[LG]\['\w+'\]\.", "", name)
    return re.sub(r"\b[LG]\['(\w+)'\]", r"\1", name)


def input_position(node: fx.Node) -> int | None:
    """Which input of the Dynamo graph an input of the joint graph is; None for those that AOTAutograd made up."""
    return getattr(node.meta.get("desc"), "idx", None)


def _source_text(source: Any) -> str:
    """Dynamo's name of a size in a reader's words: "x.size(0)" for L['x'].size()[0]."""
    name = str(source.name() if callable(source.name) else source.name)  # a property since torch 2.10
    name = re.sub(r"\b[LG]\['(\w+)'\]", r"\1", name)
    return re.sub(r"\.(size|stride)\(\)\[(\d+)\]", r".\1(\2)", name)


# --- backends ------------------------------------------------------------------------------------


class JointPartitioner(CustomPartitionerFn):
    """A partition function with the identity that Inductor's caches ask for.

    Attributes:
        key: identifies source and options; None keeps the graph out of every cache.
    """

    def __init__(self, run: Partitioner | None, key: str | None) -> None:
        self._run, self.key = run, key

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Partition:
        kwargs.pop("compiler", None)
        assert self._run is not None
        return self._run(gm, joint_inputs, **kwargs)

    def uuid(self) -> str | None:
        return self.key

    def __reduce__(self) -> tuple[Any, ...]:
        """For Inductor's cache key, which pickles all settings: what we do is in ``key``, not in the reports so far."""
        return JointPartitioner, (None, self.key or uuid.uuid4().hex)


def compile_inductor(
    gm: fx.GraphModule, inputs: Sequence[Any], partitioner: JointPartitioner, patches: dict[str, Any]
) -> Callable[..., Any]:
    """Compiles a Dynamo graph with Inductor, its joint graph split by ``partitioner``.

    AOTAutograd's cache is left out, because a hit there skips the partitioner and with it the report; Inductor's
    own cache of compiled kernels works as always.
    """
    from torch._inductor.compile_fx import compile_fx

    _lower_hints()
    with functorch_config.patch(enable_autograd_cache=False):
        compiled: Any = compile_fx(gm, list(inputs), inner_compile=compile_half, config_patches={
            # Inductor would hold what it has read for the last time until something of its size is made
            "allow_buffer_reuse": False, **patches, "custom_partitioner_fn": partitioner,
        })  # fmt: skip
    return compiled


def compile_half(*args: Any, **kwargs: Any) -> Any:
    """Inductor, for forward, backward or inference; the former two with our limits for expressions."""
    from torch._inductor.compile_fx import compile_fx_inner

    half: Half = "backward" if kwargs.get("is_backward") else "forward"
    limits = realize_limits(args[0], None if kwargs.get("is_inference") else half)
    patches = {
        "realize_reads_threshold": limits.reads, "realize_acc_reads_threshold": limits.all_reads,
        "realize_opcount_threshold": limits.ops,
    }  # fmt: skip
    with _quick_inductor(half), inductor_config.patch(patches):
        return compile_fx_inner(*args, **kwargs)


@contextlib.contextmanager
def _quick_inductor(half: Half) -> Iterator[None]:
    """Spares Inductor work whose results it throws away.

    - Its table of dtype rules is one object, which fills itself in anew for every operator of every kernel.
    - A loop over whole vectors gets code for its empty tail, which is then left out.
    - An expression that is read at two places of another one is traced twice, what it reads four times, and so on; the
      printer then drops the copies. Not in forward: how Inductor splits a loop depends on how many operators it counts,
      and forward's own loops are to be those of plain torch.compile.
    - Every kernel is a C++ file of its own, and most of the time that takes goes into headers and the linker.

    And the processor: eight bytes of a code are loaded as such, and no more than eight at a time.
    """
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codegen import cpp
    from torch._inductor.codegen.cpp import CppKernelProxy, CppVecKernel
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
    from torch._inductor.ir import Pointwise

    DtypePropagationOpsHandler()
    with (
        patch.object(DtypePropagationOpsHandler, "__init__", lambda self: None),
        patch.object(AsyncCompile, "cpp_pybinding", _in_few_files(AsyncCompile.cpp_pybinding)),
        patch.object(cpp, "get_loop_body_lowp_fp", _not_for_radii(cpp.get_loop_body_lowp_fp)),
        patch.object(CppVecKernel, "_get_vec_load_line", _codes_at_once(CppVecKernel._get_vec_load_line)),
        patch.object(CppKernelProxy, "codegen_functions", _without_empty_tails(CppKernelProxy.codegen_functions)),
        patch.object(Pointwise, "make_loader", _traced_once(Pointwise.make_loader))
        if half == "backward" else contextlib.nullcontext(),
    ):  # fmt: skip
        yield


def _traced_once(make_loader: Callable[[Any], Callable[..., Any]]) -> Callable[[Any], Callable[..., Any]]:
    """A pointwise value's function, which gives what it gave before, as long as the same trace goes on."""
    from torch._inductor.virtualized import NullKernelHandler

    def made(self: Any) -> Callable[..., Any]:
        if (known := vars(self).get("_fxapprox_loader")) is not None:
            return known
        load, traced, handler = make_loader(self), {}, None

        def loader(index: Sequence[Any]) -> Any:
            nonlocal traced, handler
            if not isinstance(V.kernel, NullKernelHandler):
                return load(index)  # code is being written: a name may be out of scope by now
            if handler is not V.get_ops_handler():
                traced, handler = {}, V.get_ops_handler()
            key = tuple(index)
            if key not in traced:
                traced[key] = load(index)
            return traced[key]

        object.__setattr__(self, "_fxapprox_loader", loader)
        return loader

    return made


def _codes_at_once(load_line: Callable[..., str]) -> Callable[..., str]:
    """Writes the load of a few bytes of a code, with AVX2 a quarter of a vector, as one instruction.

    ``loadu`` with a count puts them into a vector of ones in memory first, which takes longer than all of the decoder's
    arithmetic. The ones keep a division from failing; nothing is divided by a code.
    """
    from torch._inductor.cpu_vec_isa import VecAVX2, pick_vec_isa

    def line(self: Any, var: str, index: Any, dtype: torch.dtype, load_mask: Any = None) -> str:
        written = load_line(self, var, index, dtype, load_mask)
        whole = self.tail_size is None and self.num_elems == 8 and isinstance(pick_vec_isa(), VecAVX2)
        names = [name for name, argument in self.args.input_buffers.items() if argument == var]
        coded = any(is_part(name) or name in _codes_of(V.graph) for name in names)
        if dtype != torch.uint8 or load_mask is not None or not whole or not coded:
            return written
        return re.sub(r"::loadu\((.*), [^,]*\)$", r"::loadu_one_fourth(\1)", written)

    return line


def _not_for_radii(low_precision: Callable[..., Any]) -> Callable[..., Any]:
    """Tells loops how many bits their floats have: 32, if a code's bfloat16 scale is all that has 16.

    As many elements as a vector holds of 16 bits would be taken at a time, and for that many AVX2 has no conversion
    from bytes.
    """
    from torch._inductor.codegen.cpp import DTYPE_LOWP_FP

    def found(body: Any) -> tuple[torch.dtype | None, bool]:
        blocks = (body.root_block, *body.subblocks.values())
        loaded = {node.args[1] for block in blocks for node in block.graph.nodes if node.target == "load"}
        parts = {name for name in loaded if is_part(name)}
        narrow = {name for name in loaded if V.graph.get_dtype(name) in DTYPE_LOWP_FP}
        return (None, True) if parts and narrow <= parts else low_precision(body)

    return found


def _without_empty_tails(codegen: Callable[..., None]) -> Callable[..., None]:
    """Writes the code of some loops; that for their tails only if there are any.

    Reductions are left alone: they choose their accumulators by what kind of tail they have.
    """
    from torch._inductor.codegen.cpp import LoopNest

    def written(self: Any, functions: Any, sizes: Sequence[tuple[Any, Any]]) -> None:
        wanted, tile = inductor_config.cpp.enable_loop_tail_vec, LoopNest.tile
        if not wanted or any(reduced for _, reduced in sizes):
            return codegen(self, functions, sizes)

        def tiled(self: Any, depth: int, factor: int) -> Any:
            loop = tile(self, depth, factor)
            tails = any(each.size != each.tiled_size for each in self.loops if each.steps != 1)
            inductor_config.cpp.enable_loop_tail_vec = tails
            return loop

        with (
            inductor_config.patch({"cpp.enable_loop_tail_vec": wanted}),  # and back to that afterwards
            patch.object(LoopNest, "tile", tiled),
        ):
            return codegen(self, functions, sizes)

    return written


LARGEST_FILE = 24  # kernels: when one changes, its whole file is compiled again


def _in_few_files(compile_alone: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles the C++ kernels of a graph in as few files as there are compiler processes.

    A generated module asks for all of its kernels, then waits for each; the first wait starts the compiler.
    """
    from torch._inductor.async_compile import get_compile_threads, kernel_code_log
    from torch._inductor.codecache import LambdaFuture

    def requested(self: Any, argtypes: Sequence[str], source: str) -> Any:
        if get_compile_threads() <= 1:  # nobody waits for anything then
            return compile_alone(self, argtypes, source)
        kernel_code_log.info("CPP+Bindings Kernel:\n%s", source)
        kernels = vars(self).setdefault("_fxapprox_kernels", _CppKernels(self.submit, get_compile_threads()))
        return LambdaFuture(functools.partial(kernels.function, kernels.add(argtypes, source)))

    return requested


class _CppKernels:
    """Kernels that share files.

    Args:
        submit: runs a function in one of the compiler threads; returns its future.
        threads: how many of them there are.
    """

    def __init__(self, submit: Callable[..., Any], threads: int) -> None:
        self._submit, self._threads = submit, threads
        self._kernels: list[tuple[Sequence[str], str]] = []
        self._functions: list[Callable[[], Any]] = []

    def add(self, argtypes: Sequence[str], source: str) -> int:
        """One more kernel, C++ types of its arguments and its code; returns its number."""
        self._kernels.append((argtypes, source))
        return len(self._kernels) - 1

    def function(self, number: int) -> Callable[..., None]:
        """A kernel, as what Python calls; compiles all that have been added when first called."""
        if not self._functions:
            self._functions = self._start()
        return self._functions[number]()

    def _start(self) -> list[Callable[[], Any]]:
        """Starts the compiler; for each kernel the function that waits for it."""
        from torch._inductor.codecache import CppPythonBindingsCodeCache as Cache

        alone = functools.partial(Cache.load_pybinding_async, submit_fn=self._submit)
        found: dict[int, Callable[[], Any]] = {}
        for batch in self._batches():
            if len(batch) == 1:
                found[batch[0]] = alone(*self._kernels[batch[0]])
                continue
            library = _library([self._kernels[number] for number in batch], self._submit)
            for place, number in enumerate(batch):
                found[number] = functools.partial(
                    _function, library, place, functools.partial(alone, *self._kernels[number])
                )
        return [found[number] for number in range(len(self._kernels))]

    def _batches(self) -> list[list[int]]:
        """Numbers of kernels for each file: of about the same length, as few as keep all threads busy.

        Only plain loops come together; templates bring macros and headers, which could get into each other's way.
        """
        single, plain = [], []
        for number, (_, source) in enumerate(self._kernels):
            (plain if _is_plain(source) else single).append(number)
        files = max(min(self._threads, len(plain)), -(-len(plain) // LARGEST_FILE))
        batches: list[list[int]] = [[] for _ in range(files)]
        lengths = [0] * files
        for number in sorted(plain, key=lambda number: -len(self._kernels[number][1])):
            shortest = lengths.index(min(lengths))
            batches[shortest].append(number)
            lengths[shortest] += len(self._kernels[number][1])
        return [[number] for number in single] + batches


KERNEL = 'extern "C"'  # what a kernel's one function begins with


def _is_plain(source: str) -> bool:
    """Whether nothing but the function is in a kernel's code, its one header aside."""
    lines = [line.strip() for line in source.splitlines()]
    directives = [line for line in lines if line.startswith("#") and not line.startswith("#pragma")]
    return source.count(KERNEL) == 1 and len(directives) == 1 and "cpp_prefix" in directives[0]


def _library(kernels: Sequence[tuple[Sequence[str], str]], submit: Callable[..., Any]) -> Callable[[], Any]:
    """Starts to compile kernels as one file, each in a namespace; returns what waits for the extension module."""
    heads: dict[str, None] = {}
    spaces = []
    for place, (argtypes, source) in enumerate(kernels):
        binding = _binding(place)
        given = ", ".join(f"parse_arg<{kind.replace('const ', '')}>(args, {n})" for n, kind in enumerate(argtypes))
        code = source.replace(KERNEL, "static") + binding.suffix_template.format(
            arg_len=len(argtypes), call_entry_func=binding.call_entry_function.format(given),
            entry_func=binding.entry_function, extra_parse_arg="",
        )  # fmt: skip
        lines = [line.strip() for line in code.splitlines()]
        heads.update((line, None) for line in lines if line.startswith(("#include", "#define")))
        body = "\n".join(line for line in lines if line not in heads)
        spaces.append(f"namespace {binding.entry_function}_space {{\n{body}\n}}")
    return _binding(0).load_async("\n".join([*heads, *spaces]) + "\n", submit_fn=submit)


@functools.cache
def _binding(place: int) -> Any:
    """Inductor's own binding of a C++ function to Python, under a name of its own in the file."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    return type("Binding", (CppPythonBindingsCodeCache,), {"entry_function": f"kernel_{place}"})


def _function(library: Callable[[], Any], place: int, alone: Callable[[], Callable[[], Any]]) -> Any:
    """A kernel of a library; compiled alone if the library cannot be, so that an error is about one kernel."""
    try:
        loaded, binding = library(), _binding(place)
    except Exception:  # whatever the C++ compiler or the loader raise
        return alone()()
    module = binding._load_library_inner(loaded.__file__, loaded.key)
    return getattr(module, binding.entry_function)


def compile_eager(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    partitioner: JointPartitioner,
    patches: dict[str, Any],
    *,
    backward: Callable[[fx.GraphModule], Callable[..., Any]] = lambda graph: graph.forward,
) -> Callable[..., Any]:
    """Runs the same forward and backward graphs as :func:`compile_inductor`, operator by operator.

    ``backward`` makes the function that runs a backward graph.
    """
    from torch._inductor.compile_fx import partition_fn

    def partition(joint: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Partition:
        mode = fake_mode_of(joint)
        with (
            inductor_config.patch({**patches, "custom_partitioner_fn": partitioner}),
            V.set_fake_mode(mode) if mode is not None else contextlib.nullcontext(),
        ):
            return partition_fn(joint, joint_inputs, **kwargs)

    def run(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return make_boxed_func(graph.forward)

    def run_backward(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return make_boxed_func(backward(graph))

    with functorch_config.patch(enable_autograd_cache=False):
        return aot_autograd(
            fw_compiler=run, bw_compiler=run_backward, partition_fn=partition, decompositions=select_decomp_table,
            keep_inference_input_mutations=True,
        )(gm, list(inputs))  # fmt: skip


def many_compilations() -> contextlib.AbstractContextManager[None]:
    """Has Dynamo compile a function as often as it is asked to; beyond a limit it would run it uncompiled."""
    unlimited = 2**31
    return dynamo_config.patch(recompile_limit=unlimited, accumulated_recompile_limit=unlimited)


def graphs_compiled() -> int:
    """Graphs that Dynamo has handed to backends in this process, for training and for inference."""
    return counters["stats"]["unique_graphs"]


@contextlib.contextmanager
def graph_breaks() -> Iterator[list[tuple[str, list[traceback.FrameSummary]]]]:
    """Collects (reason, user's frames) of each graph break inside; the list is filled at the end."""
    before = len(graph_break_reasons)
    found: list[tuple[str, list[traceback.FrameSummary]]] = []
    yield found
    found += [(each.reason, list(each.user_stack)) for each in graph_break_reasons[before:] if each.graph_break]


def user_error(error: BaseException) -> tuple[BaseException, list[traceback.FrameSummary]]:
    """The error that the user's code raised, out of Dynamo's own if it is in one, and the frames to it."""
    if isinstance(error, TorchRuntimeError):
        inner: BaseException = error
        while inner.__context__ is not None and (
            isinstance(inner, TorchDynamoException) or str(inner).startswith("Dynamo failed to run")
        ):
            inner = inner.__context__
        return inner, list(error.real_stack)
    if isinstance(error, TorchDynamoException):
        return error, []  # torch's own trouble, or ours
    if failed_in_tracing(error):
        return error, list(error.real_stack)  # type: ignore[attr-defined]
    return error, list(traceback.extract_tb(error.__traceback__))


def failed_in_tracing(error: BaseException) -> bool:
    """Whether the user's code raised it while Dynamo traced: Dynamo wraps it, or adds the user's frames."""
    return isinstance(error, TorchRuntimeError) or (
        hasattr(error, "real_stack") and not isinstance(error, TorchDynamoException)
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch from logging what is raised or reported anyway; TORCH_LOGS has the last word."""
    loggers = [] if os.environ.get("TORCH_LOGS") else map(logging.getLogger, ("torch._dynamo", "torch._subclasses"))
    levels = [(logger, logger.level) for logger in loggers]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """Adds an artifact to torch's structured trace (TORCH_TRACE); ``payload`` is called only if somebody takes it.

    torch itself asks for no more than a handler; pytest adds some to every logger, for warnings.
    """
    if any(handler.level <= logging.DEBUG for handler in trace_log.handlers):
        trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


def through_dynamo(error: Exception) -> Exception:
    """The same error as one that Dynamo hands to the caller of the model as it is, not inside one of its own."""
    kind: Any = type(error)
    transparent = type(kind.__name__, (kind, ShortenTraceback), {"__module__": kind.__module__})
    twin = transparent.__new__(transparent, *error.args)
    twin.args = error.args
    twin.__dict__.update({**error.__dict__, "first_useful_frame": None})
    return twin


def stand_in_outputs(gm: fx.GraphModule, mode: FakeTensorMode | None = None) -> Callable[..., list[Any]]:
    """A function that returns zeros where a Dynamo graph returns tensors, and runs nothing.

    With a mode, the zeros are fake as well.
    """
    output = next(iter(gm.graph.find_nodes(op="output")))
    examples = [n.meta.get("example_value", n) if isinstance(n, fx.Node) else n for n in output.args[0]]

    def run(*_: Any) -> list[Any]:
        with mode or contextlib.nullcontext():
            return [_zeros_like(e) if isinstance(e, torch.Tensor) else hint(e) if is_size(e) else e for e in examples]

    return run


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


def is_size(value: object) -> bool:
    """Whether the value is a symbolic integer."""
    return isinstance(value, torch.SymInt)


def _zeros_like(example: torch.Tensor) -> torch.Tensor:
    shape = [hint(size) for size in example.shape]
    zeros = torch.zeros(shape, dtype=example.dtype, device=example.device)
    return zeros.requires_grad_(example.requires_grad)


def inductor_option_names() -> tuple[str, ...]:
    """Names that torch.compile(options=...) takes for Inductor."""
    return tuple(inductor_config.get_config_copy())


def inductor_mode(mode: str | None) -> dict[str, Any]:
    """Inductor's settings for a torch.compile mode."""
    return dict(list_mode_options(mode)) if mode and mode != "default" else {}


def calling_compiler() -> object | None:
    """The torch.compile wrapper that is calling a backend, two frames up; it is what ties a backend to its model.

    Dynamo passes a backend named by a string nothing that says for whom it compiles.
    """
    owner = sys._getframe(2).f_locals.get("self")
    return owner if type(owner).__name__ == "_TorchCompileWrapper" else None


def compiler_of(compiled: object) -> object | None:
    """The torch.compile wrapper (or backend) inside what torch.compile returned; None for anything else."""
    found = _callback(compiled) or getattr(compiled, "_torchdynamo_orig_backend", None)
    while True:
        inner = next(
            (
                getattr(found, name)
                for name in ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")
                if getattr(found, name, None) is not None
            ),
            None,
        )
        if inner is None:
            return found
        found = inner


def is_compiled(model: object) -> bool:
    """Whether torch.compile returned this."""
    return isinstance(model, OptimizedModule) or hasattr(model, "_torchdynamo_orig_callable")


def compiled_parts(model: object) -> list[object]:
    """What torch.compile returned, in the order in which a model holds it: itself, or modules that are inside of it."""
    if not isinstance(model, torch.nn.Module) or isinstance(model, OptimizedModule):
        return [model]
    inside = ((module, module._compiled_call_impl) for module in model.modules())  # set by nn.Module.compile
    return [call or module for module, call in inside if call is not None or isinstance(module, OptimizedModule)]


def _callback(compiled: object) -> object | None:
    """Dynamo's callback: a compiled module's context has it, a compiled function closes over it."""
    if not inspect.isfunction(compiled):
        return getattr(getattr(compiled, "dynamo_ctx", None), "callback", None)
    cells = dict(zip(compiled.__code__.co_freevars, compiled.__closure__ or (), strict=True))
    return cells["callback"].cell_contents if "callback" in cells else None


def compiled_by(compiled: object, name: str) -> bool:
    """Whether this came out of torch.compile(backend=name)."""
    return getattr(compiler_of(compiled), "compiler_name", None) == name


__all__ = [
    "FENCE",
    "IN_MEMORY",
    "NEEDS_VALUES",
    "FakeTensor",
    "FakeTensorMode",
    "Half",
    "JointPartitioner",
    "Partition",
    "RealizeLimits",
    "activation_memory_budget",
    "call_function",
    "calling_compiler",
    "changed_inputs",
    "compile_eager",
    "compile_inductor",
    "compiled_by",
    "compiled_parts",
    "compiler_of",
    "copy_node",
    "default_saved",
    "dynamic_sizes",
    "exact_partition",
    "expression",
    "failed_in_tracing",
    "fake_like",
    "fake_mode",
    "fake_mode_of",
    "finish_split",
    "flat_outputs",
    "fp8_activations",
    "graph_breaks",
    "graphs_compiled",
    "hint",
    "inductor_mode",
    "inductor_option_names",
    "input_names",
    "input_position",
    "is_compiled",
    "is_opaque",
    "is_operator",
    "is_size",
    "is_symbolic_scalar",
    "is_tangent",
    "kernels_in_profiles",
    "many_compilations",
    "map_tensors",
    "marked_dynamic",
    "materialize",
    "must_be_in_backward",
    "must_recompute",
    "must_save",
    "mutates",
    "name_part",
    "prefers_channels_last",
    "prepare_joint",
    "quiet",
    "realize_limits",
    "rename",
    "size_conditions",
    "size_symbols",
    "small",
    "split",
    "stand_in_outputs",
    "take_place",
    "tensors_in",
    "through_dynamo",
    "trace",
    "trace_artifact",
    "user_error",
]
