"""Joint graphs of small models, as the passes get them; and their two halves, run by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from textwrap import dedent
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer

from fxapprox import Options
from fxapprox import torch_adapter as adapter
from fxapprox.collector import collector_paused
from fxapprox.frontend.tracing import fresh
from fxapprox.ir.joint import Joint
from fxapprox.ir.records import Activation
from fxapprox.passes.pipeline import PREPARE
from fxapprox.passes.rewrite import Rewrite, rewrite
from fxapprox.passes.runner import Clock, State, run
from fxapprox.report.accounting import report_of
from fxapprox.report.result import Report
from tests.dumps import DTYPES


def prepared(model: Callable[..., Any], *args: Any) -> State:
    """The joint graph of a model, and its values classified: what there is to decide on."""
    found = traced(model, *args)
    adapter.prepare_joint(found.gm)
    return run(State(Joint(found.gm, found.outputs), Options(min_bytes=0)), PREPARE, Clock())


def joint_of(model: Callable[..., Any], *args: Any) -> Joint:
    """The prepared joint graph of a model."""
    return prepared(model, *args).joint


def classified(model: Callable[..., Any], *args: Any) -> dict[str, Activation]:
    """Every forward value by its name."""
    return {a.name: a for a in prepared(model, *args).activations}


def of_op(values: dict[str, Activation], op: str) -> list[Activation]:
    """The values that an operator made."""
    return [a for a in values.values() if a.op == op]


def written(text: str) -> Joint:
    """A joint graph as text, without a model: a line an input, ``x: f32[8, 4]``, or a value, ``h = aten.mm(x, w)``.

    The last line has what forward and backward return: ``return h | dx, dw``. Tangents are inputs of this name.
    """
    graph, mode = fx.Graph(), adapter.fake_mode()
    tracer, values = GraphAppendingTracer(graph), dict[str, fx.Proxy]()
    *lines, returned = dedent(text).strip().splitlines()
    for line in lines:
        if given := re.fullmatch(r"(\w+): (\w+)\[(.*)\]", line):
            name, dtype, sizes = given.groups()
            made = graph.placeholder(name)
            like = torch.empty([*map(int, sizes.split(", "))], dtype=getattr(torch, LONG[dtype]), device="meta")
            made.meta["val"] = adapter.fake_like(like, mode, torch.device("cpu"))
        else:
            name, operator, args = re.fullmatch(r"(\w+) = aten\.([\w.]+)\((.*)\)", line).groups()  # type: ignore[union-attr]
            target = attrgetter(operator if "." in operator else f"{operator}.default")(torch.ops.aten)
            made = eval(f"target({args})", {"target": target}, values).node
            made._rename(name)
            with mode:
                made.meta["val"] = target(*map_arg(made.args, lambda node: node.meta["val"]))
        values[name] = fx.Proxy(made, tracer)
    halves = [
        [values[name].node for name in half.split(", ")] for half in returned.removeprefix("return ").split(" | ")
    ]
    graph.output((*halves[0], *halves[1]))
    return Joint(fx.GraphModule({}, graph), len(halves[0]))


LONG = {short: name for name, short in DTYPES.items()}

# two layers with a tanh between; the gradients of their weights
LAYERS = """
    x: f32[32, 16]
    w: f32[16, 16]
    v: f32[16, 4]
    tangents_1: f32[32, 4]
    h = aten.mm(x, w)
    y = aten.tanh(h)
    z = aten.mm(y, v)
    yt = aten.permute(y, [1, 0])
    dv = aten.mm(yt, tangents_1)
    vt = aten.permute(v, [1, 0])
    dy = aten.mm(tangents_1, vt)
    dh = aten.tanh_backward(dy, y)
    xt = aten.permute(x, [1, 0])
    dw = aten.mm(xt, dh)
    return z | dw, dv
"""


@dataclass(frozen=True)
class Traced:
    """A joint graph, which can be split again and again, and the inputs of the call that it was traced for.

    Attributes:
        gm: the graph.
        outputs: how many of its outputs are forward's.
        inputs: parameters and buffers among them; the model's own, which nothing here changes.
    """

    gm: fx.GraphModule
    outputs: int
    inputs: tuple[Any, ...]

    def split(self, **options: Any) -> Rewrite:
        """The two halves, for these options."""
        own = Options(**{"strict": True, "min_bytes": 0, "lowering": "eager", **options})
        return rewrite(self.gm, self.inputs, num_fwd_outputs=self.outputs, options=own)

    def step(self, halves: Rewrite) -> Step:
        """Runs forward and backward, on copies of the inputs."""
        inputs = [*map(_copied, self.inputs)]
        torch.manual_seed(5)
        returned = halves.forward(*inputs)
        outputs, saved = returned[: self.outputs], returned[self.outputs :]
        alive = {_memory(t) for t in inputs if isinstance(t, Tensor)}
        held = {_memory(t): t.untyped_storage().nbytes() for t in saved if isinstance(t, Tensor)}
        stored = sum(size for where, size in held.items() if where not in alive)
        tangents = [torch.randn_like(o) for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]
        gradients = halves.backward(*saved, *tangents)
        return Step(outputs, inputs, [g for g in gradients if g is not None], stored)

    def gradients(self, halves: Rewrite, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A loss, the model's only output, and its gradients; 0 for parameters that the model does not read."""
        torch.manual_seed(5)
        returned = halves.forward(*map(_copied, self.inputs))
        loss, saved = returned[self.outputs - 1], returned[self.outputs :]
        found = halves.backward(*saved, torch.ones_like(loss))
        inputs = self.inputs[-len(found) :]  # tokens, which come first, have none
        of = {id(given): gradient for given, gradient in zip(inputs, found, strict=True) if gradient is not None}
        return loss, [of.get(id(each), torch.zeros_like(each)) for each in parameters]


@dataclass(frozen=True)
class Step:
    """What a training step gives.

    Attributes:
        outputs: the user's.
        inputs: as forward leaves them: running statistics have moved.
        gradients: of all inputs that need one.
        stored: bytes that forward leaves for backward; inputs are not counted.
    """

    outputs: list[Tensor]
    inputs: list[Any]
    gradients: list[Tensor]
    stored: int

    def same_as(self, other: Step) -> bool:
        """Whether every bit is the same."""
        pairs = zip(
            [*self.outputs, *self.inputs, *self.gradients], [*other.outputs, *other.inputs, *other.gradients],
            strict=True,
        )  # fmt: skip
        return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))

    @property
    def gradient(self) -> Tensor:
        """All gradients in one vector."""
        return torch.cat([g.flatten() for g in self.gradients])


@dataclass(frozen=True)
class Trained:
    """What a training step gives.

    Attributes:
        loss: of forward.
        gradient: of all parameters, in one vector.
        report: what is stored.
    """

    loss: Tensor
    gradient: Tensor
    report: Report

    def error(self, exact: Trained) -> float:
        """Of the gradient, relative to that of another step."""
        return float((self.gradient - exact.gradient).norm() / exact.gradient.norm())


def training(model: nn.Module, *inputs: Any, loss: Callable[..., Tensor] | None = None) -> Callable[..., Trained]:
    """Traces a model that returns a loss, or one and its loss, once: what a step gives for any options."""
    joint = traced(loss or model, *inputs)

    def train(**options: Any) -> Trained:
        halves = joint.split(**options)
        found, gradients = joint.gradients(halves, list(model.parameters()))
        return Trained(found, torch.cat([g.flatten() for g in gradients]), report_of(halves, lowering="eager"))

    return train


class _Caught(Exception):
    """Ends a compilation, and then the call: there is a joint graph, and its inputs are known."""


# One for all: what codecs are traced as, which takes longest, serves every graph of a session.
_MODE = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
adapter.keep_traces(_MODE)


class _Catcher:
    """A backend of torch.compile that takes the joint graph before our first pass, and runs nothing."""

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def catch(joint: fx.GraphModule, _: Sequence[Any], *, num_fwd_outputs: int, **kwargs: Any) -> adapter.Partition:
            self.joint, self.outputs = joint, num_fwd_outputs
            raise _Caught

        with suppress(_Caught), collector_paused(), tracing(None):  # Dynamo's own mode is set there
            fakes = [adapter.fake_like(x, _MODE, x.device) if isinstance(x, Tensor) else x for x in inputs]
            adapter.compile_eager(gm, fakes, adapter.JointPartitioner(catch, None), {})
        return self._called

    def _called(self, *given: Any) -> Any:
        self.given = given
        raise _Caught


def traced(model: Callable[..., Any], *args: Any) -> Traced:
    """The joint graph of a model without graph breaks, and its inputs."""
    catcher = _Catcher()
    with suppress(_Caught):
        torch.compile(fresh(model), backend=catcher, dynamic=False, fullgraph=True)(*args)
    inputs = [n for n in catcher.joint.graph.find_nodes(op="placeholder") if not adapter.is_tangent(n)]
    tokens = [torch.empty(0)] * (len(inputs) - len(catcher.given))  # of operators with effects
    return Traced(catcher.joint, catcher.outputs, (*tokens, *catcher.given))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
