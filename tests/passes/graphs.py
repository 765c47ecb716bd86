"""Joint graphs of small models, as the passes get them; and their two halves, run by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

import fxapprox
from fxapprox import Options
from fxapprox.frontend.backend import Backend, wrapped
from fxapprox.ir.joint import Joint
from fxapprox.ir.records import Activation
from fxapprox.passes.classify import classify
from fxapprox.passes.rewrite import Rewrite, rewrite


def joint_of(model: Callable[..., Any], *args: Any) -> Joint:
    """The prepared joint graph of a model that returns one tensor."""
    report = fxapprox.explain(model, *args, min_bytes=0)
    assert report.joint is not None
    outputs = len(report.joint.graph.find_nodes(op="output")[0].args[0])  # type: ignore[arg-type]
    assert outputs
    return Joint(report.joint, 1)


def classified(model: Callable[..., Any], *args: Any) -> dict[str, Activation]:
    """Every forward value by its name."""
    return {a.name: a for a in classify(joint_of(model, *args), min_bytes=0)}


def of_op(values: dict[str, Activation], op: str) -> list[Activation]:
    """The values that an operator made."""
    return [a for a in values.values() if a.op == op]


@dataclass(frozen=True)
class Traced:
    """A joint graph, which can be split again and again, and the inputs of the call that it was traced for.

    Attributes:
        gm: the graph.
        outputs: how many of its outputs are forward's.
        inputs: parameters and buffers among them.
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
        inputs = [value.detach().clone() if isinstance(value, Tensor) else value for value in self.inputs]
        torch.manual_seed(5)
        returned = halves.forward(*inputs)
        outputs, saved = returned[: self.outputs], returned[self.outputs :]
        alive = {_memory(t) for t in inputs if isinstance(t, Tensor)}
        held = {_memory(t): t.untyped_storage().nbytes() for t in saved if isinstance(t, Tensor)}
        stored = sum(size for where, size in held.items() if where not in alive)
        tangents = [torch.randn_like(o) for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]
        gradients = halves.backward(*saved, *tangents)
        return Step(outputs, inputs, [g for g in gradients if g is not None], stored)


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


class _Recorder(Backend):
    """Keeps what the compiled graph is called with."""

    def __call__(self, gm: fx.GraphModule, inputs: Any, **kwargs: Any) -> Callable[..., Any]:
        run = super().__call__(gm, inputs, **kwargs)

        def recorded(*args: Any) -> Any:
            self.given = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
            return run(*args)

        return recorded


def traced(model: Callable[..., Any], *args: Any) -> Traced:
    """The joint graph of a model without graph breaks, and its inputs."""
    recorder = _Recorder(Options(bits=None, min_bytes=2**60, lowering="eager", strict=True))
    compiled = wrapped(model, recorder, dynamic=False)
    compiled(*args)
    (report,) = fxapprox.reports(compiled)
    assert report.joint is not None
    inputs = [n for n in report.joint.graph.find_nodes(op="placeholder") if "tangents" not in str(n.target)]
    (output,) = report.joint.graph.find_nodes(op="output")
    return Traced(report.joint, len(output.args[0]) - len(inputs), recorder.given)  # type: ignore[arg-type]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
