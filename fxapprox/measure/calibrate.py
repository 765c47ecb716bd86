"""Measures on one batch how much each stored value moves the gradients: what ``bits="auto"`` chooses by.

One forward and one exact backward are run, and then backward again for each value and number of bits, with that one
value decoded from its code. Everything is run eagerly; nothing of the model changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, fx, nn
from typing_extensions import Unpack

from fxapprox.bits import PROVISIONAL
from fxapprox.codecs import Exact, Mask
from fxapprox.errors import FxApproxError
from fxapprox.files.sensitivity import Sensitivities
from fxapprox.frontend.backend import Backend
from fxapprox.frontend.probing import Probed, Replay, Tried, compile_probed
from fxapprox.frontend.tracing import fresh, untouched
from fxapprox.ir.records import Activation, Stored
from fxapprox.memory.between import Between
from fxapprox.options import OptionKeywords, Options
from fxapprox.passes.allocate import adjustable, levels

USELESS = 1e12  # in place of squared errors that are not finite: a code made gradients of NaN


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
    asked = Options.parse({**options, "bits": PROVISIONAL, "lowering": "eager", "sensitivities": None, "error": None})
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
    """What came out of one training graph.

    Attributes:
        errors: {value: {bits: squared error of the parameters' gradients}}.
        upstream: the same, of the gradients handed on to earlier graphs, relative.
        energy: squared norm of the parameters' gradients.
    """

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
        graph, everything = _Graph(), frozenset(range(len(inputs)))

        def on_backward(probed: Probed, replay: Replay) -> None:
            own = parameters if len(probed.result.joint.outputs[1]) == len(inputs) else everything
            graph.energy = _energy(replay.exact, own)
            task = self.bar.add_task("one value at a time", total=len(probed.probes))
            for name, (probe, inputs_of) in probed.probes.items():
                graph.errors[name], graph.upstream[name] = {}, {}
                for bits in probe.tried:
                    value = replay.approximation(probe, inputs_of, bits)
                    distance = _distance(replay.run({inputs_of[0]: value}), replay.exact, own)
                    graph.errors[name][bits], graph.upstream[name][bits] = distance
                self.bar.advance(task)
            self.bar.update(task, visible=False)

        link = self.between.link(gm, inputs)
        return compile_probed(
            gm, inputs, link, self.options, self.tried, lambda _: self.graphs.append(graph), on_backward
        )

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
