"""Measures on one batch how much each stored value moves the gradients: what ``bits="auto"`` chooses by.

One forward and one exact backward are run, and then backward again for each value and number of bits, with that one
value decoded from its code. Everything is run eagerly; nothing of the model changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, fx, nn
from typing_extensions import Unpack

from fxapprox import torch_adapter as adapter
from fxapprox.bits import PROVISIONAL
from fxapprox.codecs import Exact, Like, Mask, Probe
from fxapprox.errors import FxApproxError
from fxapprox.files.sensitivity import Sensitivities
from fxapprox.frontend.backend import Backend, note_saved
from fxapprox.frontend.tracing import fresh, untouched
from fxapprox.ir.records import Activation, Plan, Stored
from fxapprox.ir.tensors import memory_order
from fxapprox.memory.between import Between
from fxapprox.options import OptionKeywords, Options
from fxapprox.passes.allocate import adjustable, levels
from fxapprox.passes.rewrite import Rewrite, rewrite

USELESS = 1e12  # in place of squared errors that are not finite: a code made gradients of NaN

Tried = Callable[[Stored, Activation, Options], tuple[int, ...]]


def calibrate(
    model: Callable[..., Any],
    loss_fn: Callable[[Any], Tensor] | None,
    batch: Tensor | Sequence[Any],
    *,
    progress: bool = True,
    **options: Unpack[OptionKeywords],
) -> Sensitivities:
    """Measures the gradient error that each stored value causes in 8, 4, 3 and 2 bits.

    A batch smaller than those of training will do: errors are relative. Parameters, gradients, buffers and random
    numbers stay as they are. Takes about as many backward passes as there are stored values, times three.

    Args:
        model: the module or function, not compiled.
        loss_fn: from what the model returns to a scalar; None: the model returns the loss.
        batch: the model's argument, or a tuple or list of them.
        progress: show a progress bar on stderr.
        **options: those that training will use; see :class:`Options`. ``bits`` need not be given.

    Returns: what ``compile(model, bits="auto", sensitivities=...)`` takes; ``save`` writes it to a file.

    Raises:
        OptionError: an option is unknown or its value invalid.
        FxApproxError: nothing was captured, or the loss is no scalar that needs a gradient.
    """
    asked = Options.parse({**options, "bits": PROVISIONAL, "lowering": "eager", "sensitivities": None})
    args = (batch,) if isinstance(batch, Tensor) else tuple(batch)
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    gradients = [p.grad for p in parameters]
    with Progress(disable=not progress, transient=True, console=Console(stderr=True)) as bar:
        prober = Prober(asked, _levels, bar)
        try:
            for parameter in parameters:
                parameter.grad = None  # backward would add to it in place
            with untouched(model), torch.enable_grad():
                torch.manual_seed(0)
                output = torch.compile(fresh(model), backend=prober, dynamic=False)(*args)
                loss = output if loss_fn is None else loss_fn(output)
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise FxApproxError("calibrate() wants a loss_fn that returns a scalar tensor with a gradient")
                loss.backward()
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
    if not prober.graphs:
        raise FxApproxError("no training graph was captured: nothing to measure; fxapprox.explain says more")
    if not all(math.isfinite(graph.energy) for graph in prober.graphs):
        raise FxApproxError("the exact gradients are not finite: nothing can be measured; give another batch")
    return Sensitivities(tuple(
        {name: {bits: e if e < USELESS else USELESS for bits, e in errors.items()} for name, errors in graph.items()}
        for graph in prober.sensitivities()
    ))  # fmt: skip


def _levels(entry: Stored, value: Activation, options: Options) -> tuple[int, ...]:
    return levels(entry) if adjustable(entry, value, options) else ()


def as_stored(entry: Stored, value: Activation, options: Options) -> tuple[int, ...]:
    """Tries each code in the bits that the plan gives it; a codec of the user's own that has no bits is left out."""
    bits = entry.codec.bits
    return () if bits is None or not value.approximable or isinstance(entry.codec, (Exact, Mask)) else (bits,)


@dataclass(eq=False)
class _Graph:
    """One training graph: what is tried in it, and what came out.

    Attributes:
        probes: {value: (its probe, positions of the probe's parts among backward's inputs)}.
        parameters: which of backward's outputs are gradients of parameters.
        errors: {value: {bits: squared error of the parameters' gradients}}.
        upstream: the same, of the gradients handed on to earlier graphs, relative.
        energy: squared norm of the parameters' gradients.
    """

    probes: dict[str, tuple[Probe, tuple[str, ...]]]
    parameters: frozenset[int]
    errors: dict[str, dict[int, float]] = field(default_factory=dict)
    upstream: dict[str, dict[int, float]] = field(default_factory=dict)
    energy: float = 0.0


class Prober(Backend):
    """Compiles like the backend, with a probe in place of codecs, and tries them when backward is called.

    Args:
        options: those to plan with; the lowering has to be "eager".
        tried: the numbers of bits that each entry of the plan is tried in; none leaves it as it is.
        bar: shows the progress.
    """

    def __init__(self, options: Options, tried: Tried, bar: Progress) -> None:
        super().__init__(options)
        self.tried, self.bar = tried, bar
        self.graphs: list[_Graph] = []
        self.between = Between()

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        parameters = frozenset(i for i, value in enumerate(inputs) if isinstance(value, nn.Parameter))
        link = self.between.link(gm, inputs)
        mine: list[_Graph] = []  # its backward may be compiled after another graph's

        def partition(joint: fx.GraphModule, joint_inputs: Sequence[Any], **given: Any) -> adapter.Partition:
            result = rewrite(
                joint, joint_inputs, options=self.options, handed=link.handed, revise=self._probed, **given
            )  # fmt: skip
            note_saved(link, result, joint)
            own = parameters if len(result.joint.outputs[1]) == len(inputs) else frozenset(range(len(inputs)))
            mine.append(_Graph(_probes(result), own))
            self.graphs += mine
            return result.forward, result.backward

        def watched(backward: fx.GraphModule) -> Callable[..., Any]:
            return self._watch(mine[0], backward)

        partitioner = adapter.JointPartitioner(partition, None)
        return link.watched(adapter.compile_eager(gm, inputs, partitioner, {}, backward=watched))

    def _probed(self, plan: Plan, result: Sequence[Any]) -> Plan:
        values = {a.name: a for a in result}
        stored = []
        for entry in plan.stored:
            if tried := self.tried(entry, values[entry.name], self.options):
                probe = Probe(inner=entry.codec, tried=tried, carries=bool(entry.carried))
                entry = replace(entry, codec=probe)
            stored.append(entry)
        return replace(plan, stored=tuple(stored))

    def _watch(self, graph: _Graph, backward: fx.GraphModule) -> Callable[..., Any]:
        """A backward that returns exact gradients, after it has tried everything there is to try."""

        def run(*args: Any) -> Any:
            replay = _Replay(backward, args)
            graph.energy = _energy(replay.exact, graph.parameters)
            task = self.bar.add_task("one value at a time", total=len(graph.probes))
            for name, (probe, inputs) in graph.probes.items():
                parts = [replay.inputs[part] for part in inputs]
                like = Like.of(parts[0], memory_order(parts[0]))
                graph.errors[name], graph.upstream[name] = {}, {}
                for bits, value in probe.approximations(parts, like).items():
                    distance = _distance(replay.run(inputs[0], value), replay.exact, graph.parameters)
                    graph.errors[name][bits], graph.upstream[name][bits] = distance
                self.bar.advance(task)
            self.bar.update(task, visible=False)
            return replay.exact

        return run

    def sensitivities(self) -> tuple[dict[str, dict[int, float]], ...]:
        """Squared relative errors over all parameters, those of earlier graphs included."""
        total = sum(graph.energy for graph in self.graphs) or 1.0
        found = []
        for graph in self.graphs:
            earlier = 1 - graph.energy / total
            found.append({
                name: {bits: e / total + graph.upstream[name][bits] * earlier for bits, e in errors.items()}
                for name, errors in graph.errors.items()
            })  # fmt: skip
        return tuple(found)


class _Replay:
    """A backward graph that has run once, and can run again with one input changed: only what depends on it does.

    Attributes:
        inputs: {name: value} of the graph's inputs.
        exact: what it returned.
    """

    def __init__(self, graph: fx.GraphModule, args: Sequence[Any]) -> None:
        self._graph = graph
        first = fx.Interpreter(graph, garbage_collect_values=False)
        self.exact = first.run(*args)
        self._values = dict(first.env)
        self.inputs = {node.name: first.env[node] for node in graph.graph.find_nodes(op="placeholder")}

    def run(self, name: str, value: Tensor) -> Sequence[Any]:
        """What the graph returns with another value for this input."""
        (changed,) = (node for node in self._graph.graph.find_nodes(op="placeholder") if node.name == name)
        stale = {changed}
        for node in self._graph.graph.nodes:
            if node.op == "output" or any(source in stale for source in node.all_input_nodes):
                stale.add(node)
        kept = {node: old for node, old in self._values.items() if node not in stale}
        return fx.Interpreter(self._graph).run(initial_env={**kept, changed: value})


def _probes(result: Rewrite) -> dict[str, tuple[Probe, tuple[str, ...]]]:
    return {
        parts.entry.name: (parts.entry.codec, parts.inputs)
        for parts in result.parts if isinstance(parts.entry.codec, Probe)
    }  # fmt: skip


def _energy(gradients: Sequence[Any], which: frozenset[int]) -> float:
    return sum(float(g.double().square().sum()) for i, g in enumerate(gradients) if i in which and g is not None)


def _distance(found: Sequence[Any], exact: Sequence[Any], own: frozenset[int]) -> tuple[float, float]:
    """Squared error of the parameters' gradients; squared relative error of the others."""
    mine = others = size = 0.0
    for i, (a, b) in enumerate(zip(found, exact, strict=True)):
        if not isinstance(a, Tensor) or not a.is_floating_point():
            continue
        error = float((a - b).double().square().sum())
        if i in own:
            mine += error
        else:
            others, size = others + error, size + float(b.double().square().sum())
    return mine, others / size if size else 0.0
