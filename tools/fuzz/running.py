"""Traces a program into a joint graph, without Dynamo, splits it in several ways, and runs the halves by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer
from torch.utils.checkpoint import CheckpointPolicy

from fxapprox import torch_adapter as adapter
from fxapprox.collector import collector_paused
from fxapprox.ir.joint import Joint
from fxapprox.passes.rewrite import Rewrite
from fxapprox.sizes import evaluate, hints_of
from tools.fuzz.program import BATCH, SIZES, Program

Way = Callable[..., Rewrite | None]  # (gm, joint inputs, **what AOTAutograd tells a partition function)
# Examples with fixed sizes share a mode, so that codecs' traces serve all of them: tracing is what costs time.
_MODE = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
_TRACES = adapter.keep_traces(_MODE)


class _Split(Exception):
    """Ends a compilation when its joint graph has been split."""


class Untraceable(Exception):
    """torch itself does not trace the program: what backward needs is changed in place, and the like."""


@dataclass(frozen=True)
class Traced:
    """The joint graph of a program, and its halves, split in several ways.

    Attributes:
        joint: None if nothing in the program needs a gradient.
        halves: by the name of the way; those that it refused are left out.
    """

    joint: Joint | None
    halves: dict[str, Rewrite]


def split(program: Program, ways: Mapping[str, Way]) -> Traced:
    """Traces the joint graph of a program once, and splits it in each of these ways."""
    joint: list[Joint] = []
    halves: dict[str, Rewrite] = {}

    def partition(gm: fx.GraphModule, inputs: Sequence[Any], **rest: Any) -> adapter.Partition:
        joint.append(Joint(gm, rest["num_fwd_outputs"]))
        made = ((name, way(gm, inputs, **rest)) for name, way in ways.items())
        halves.update({name: each for name, each in made if each is not None})
        gm.graph.eliminate_dead_code(lambda node: node.is_impure(impure_random=False))  # as partitions do
        raise _Split

    if len(_TRACES) > 2000:
        _TRACES.clear()
    try:
        with collector_paused():
            adapter.compile_eager(_graph_of(program), _fakes(program), adapter.JointPartitioner(partition, None), {})
    except _Split:
        pass
    except Exception as error:
        if joint:
            raise
        raise Untraceable(str(error)) from error
    return Traced(joint[0] if joint else None, halves)


def serves(joint: Joint, sizes: Mapping[str, int]) -> bool:
    """Whether a graph that was traced with symbolic sizes may be run with these."""
    symbols = [adapter.expression(node.meta["val"]) for node in adapter.size_symbols(joint.gm)]
    if not symbols or not all(isinstance(symbol, sympy.Symbol) for symbol in symbols):
        return False  # the program fixed one
    values = values_of(joint.gm, sizes)
    return all(
        bool(condition.subs({symbol: values[str(symbol)] for symbol in condition.free_symbols}))
        for condition in adapter.size_conditions(joint.gm)
    )


def values_of(gm: fx.GraphModule, sizes: Mapping[str, int]) -> dict[str, int]:
    """The values of a joint graph's symbols, by name."""
    given = {hint: sizes[name] for name, hint in SIZES.items()}
    return {symbol: given.get(hint, hint) for symbol, hint in hints_of(adapter.dynamic_sizes(gm)).items()}


def _graph_of(program: Program) -> fx.GraphModule:
    """As Dynamo hands it over: functions of torch on flat inputs."""
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    function = program.function(partial(_tagged, graph))
    names = (*(SIZES if program.dynamic else ()), *(given.name for given in program.inputs))
    given = [fx.Proxy(graph.placeholder(name), tracer) for name in names]
    sizes, inputs = (given[:1], given[len(SIZES) :]) if program.dynamic else ([BATCH], given)
    returned = function(*sizes, *inputs)
    graph.output(tuple(value.node for value in returned))
    return fx.GraphModule({}, graph)


def _tagged(graph: fx.Graph, region: Callable[[], Any], *, use_reentrant: bool) -> Any:
    """Runs a region of the user's `torch.utils.checkpoint`, and marks its nodes as Dynamo's operator for it does."""
    before = len(graph.nodes)
    returned = region()
    for node in list(graph.nodes)[before:]:
        node.meta |= {"recompute": CheckpointPolicy.PREFER_RECOMPUTE, "ac_graph_id": before}
    return returned


def _fakes(program: Program) -> list[Any]:
    """Fake inputs, as Dynamo hands them over: sizes first where they are symbolic."""
    if not program.dynamic:
        return [_MODE.from_tensor(given.make()) for given in program.inputs]
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    made: list[Any] = []
    for given in program.inputs:
        sizes = [DimDynamic.DUCK if size in SIZES else DimDynamic.STATIC for size in given.shape]
        how, source = StatelessSymbolicContext(dynamic_sizes=sizes), ConstantSource(given.name)
        made.append(mode.from_tensor(given.make(), symbolic_context=how, source=source))
    symbols = {size: fake.shape[given.shape.index(size)] for given, fake in zip(program.inputs, made, strict=True)
               for size in SIZES if size in given.shape}  # fmt: skip
    return [*(symbols.get(size, value) for size, value in SIZES.items()), *made]


@dataclass
class Step:
    """What a training step gives.

    Attributes:
        outputs: of forward, with what it changes in place.
        inputs: as forward leaves them.
        gradients: of all inputs; None for those that need none.
        stored: bytes that forward leaves for backward; inputs are not counted.
        forward, backward: every value by its name, if they are recorded.
    """

    outputs: list[Any]
    inputs: list[Any]
    gradients: list[Any]
    stored: int
    forward: dict[str, Any] = field(default_factory=dict)
    backward: dict[str, Any] = field(default_factory=dict)

    @property
    def gradient(self) -> Tensor:
        """All gradients in one vector."""
        return torch.cat([g.detach().double().flatten() for g in self.gradients if g is not None])


def run(program: Program, halves: Rewrite, *, sizes: Mapping[str, int] = SIZES, record: bool = False) -> Step:
    """Forward and backward on the program's inputs, of these sizes."""
    inputs = _inputs(program, sizes)
    forward: dict[str, Any] = {}
    backward: dict[str, Any] = {}
    count = halves.joint.num_fwd_outputs
    with torch.no_grad():
        returned = _run(halves.forward, inputs, forward, record)
        outputs, saved = list(returned[:count]), list(returned[count:])
        stored = _bytes_of(saved, inputs)
        saved.sort(key=lambda value: isinstance(value, Tensor))  # sizes first
        outputs, left = _copies(outputs), _copies(inputs)
        gradients = _run(halves.backward, [*saved, *_tangents(halves.joint.gm, sizes)], backward, record)
    return Step(outputs, left, list(gradients), stored, forward, backward)


def run_joint(program: Program, joint: Joint, *, sizes: Mapping[str, int] = SIZES) -> Step:
    """The same with nothing split, and nothing stored: what all partitions are held against."""
    inputs = _inputs(program, sizes)
    with torch.no_grad():
        returned = _run(joint.gm, [*inputs, *_tangents(joint.gm, sizes)], {}, False)
    outputs, gradients = returned[: joint.num_fwd_outputs], returned[joint.num_fwd_outputs :]
    return Step(list(outputs), inputs, list(gradients), 0)


def _inputs(program: Program, sizes: Mapping[str, int]) -> list[Any]:
    torch.manual_seed(5)
    made = [given.make(sizes).detach() for given in program.inputs]
    return [*sizes.values(), *made] if program.dynamic else made


def _copies(values: Sequence[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def _bytes_of(saved: Sequence[Any], alive: Sequence[Any]) -> int:
    """Bytes of the memory of saved tensors, but for these."""
    held = {_memory(t): t.untyped_storage().nbytes() for t in saved if isinstance(t, Tensor)}
    others = {_memory(t) for t in alive if isinstance(t, Tensor)}
    return sum(size for where, size in held.items() if where not in others)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tangents(joint: fx.GraphModule, sizes: Mapping[str, int]) -> list[Tensor]:
    """Incoming gradients: random, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    values = values_of(joint, sizes)
    made = []
    for node in joint.graph.find_nodes(op="placeholder"):
        if adapter.is_tangent(node):
            fake = node.meta["val"]
            shape, stride = (
                [evaluate(adapter.expression(size), values) for size in each] for each in (fake.shape, fake.stride())
            )
            tangent = torch.empty_strided(shape, stride, dtype=fake.dtype)
            made.append(tangent.copy_(torch.randn(shape, generator=generator, dtype=torch.float64)))
    return made


def _run(gm: fx.GraphModule, inputs: Sequence[Any], values: dict[str, Any], record: bool) -> Sequence[Any]:
    """Node by node, which for small graphs takes less time than to compile them to Python."""
    env: dict[fx.Node, Any] = {}
    waiting = iter(inputs)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(waiting)
        elif node.op == "get_attr":
            env[node] = getattr(gm, str(node.target))
        elif node.op == "output":
            return map_arg(node.args[0], env.__getitem__)  # type: ignore[return-value]
        else:
            args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)  # type: ignore[misc]
            env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        if record:
            values[node.name] = env[node]
    raise AssertionError("a graph without an output")
