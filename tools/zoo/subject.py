"""One compiled model of the zoo, and its training steps."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.measure import peak_bytes, stored_bytes
from fxapprox.user_code import GraphBreak, graph_breaks
from tests.models import Case
from tools.plain import plain
from tools.zoo.rows import Setting

Builder = Callable[..., Case]
SEED = 1


@dataclass(frozen=True)
class Outcome:
    """What a training step gave.

    Attributes:
        loss: detached.
        gradients: of each parameter by name; None where there is none.
        buffers: after the step.
        stored: bytes held between forward and backward; parameters, buffers and inputs are not counted.
    """

    loss: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    stored: int


@dataclass(frozen=True)
class Compilation:
    """What Dynamo did for the first step, and for the first at another batch.

    Attributes:
        graphs: compiled for the first step.
        breaks: between them.
        recompiled: graphs compiled anew for the second batch.
        warnings: in the order in which they were given, each once.
    """

    graphs: int
    breaks: tuple[GraphBreak, ...]
    recompiled: int
    warnings: tuple[str, ...]


class Subject:
    """A fresh model with its inputs, compiled in one way.

    Args:
        build: gives the same weights every time.
        compiled: what compiles a module.
    """

    def __init__(self, build: Builder, setting: Setting, compiled: Callable[[torch.nn.Module], Any]) -> None:
        cases = cases_of(build) if setting.batch == "dynamic" else (build(),)
        self.setting, self.model = setting, cases[0].model
        self._cases = cases
        self.run = compiled(self.model)

    def first(self) -> tuple[Outcome, Compilation]:
        """Compiles, and runs the step that is measured: with dynamic batches the first at the second one."""
        with warnings.catch_warnings(record=True) as caught, adapter.graph_breaks() as raw:
            warnings.simplefilter("always")
            before = adapter.graphs_compiled()
            outcome = self._step(self._cases[0])
            graphs = adapter.graphs_compiled() - before
            if len(self._cases) > 1:
                outcome = self._step(self._cases[1])
            recompiled = adapter.graphs_compiled() - before - graphs
        said = dict.fromkeys(" ".join(str(w.message).split()) for w in caught)
        return outcome, Compilation(graphs, graph_breaks(raw), recompiled, tuple(said))

    def _step(self, case: Case) -> Outcome:
        loss = self._forward(case)
        model = self.model
        stored = stored_bytes(loss, exclude=[*model.parameters(), *model.buffers(), *case.args])
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        return Outcome(loss.detach(), gradients, {n: b.clone() for n, b in model.named_buffers()}, stored)

    def _forward(self, case: Case) -> Tensor:
        """The loss, from no gradients and the same random numbers every time."""
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(SEED)
        with self._autocast(), self._sizes(case):
            return case.loss(self.run(*case.args))

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.setting.precision == "bf16" else nullcontext()

    def _sizes(self, case: Case) -> Any:
        if len(self._cases) == 1:
            return nullcontext()
        return adapter.marked_dynamic(case.args, [() if at is None else (at,) for at in batched(case)])

    def peak(self) -> int:
        """Bytes by which a step raises the memory in use."""
        self.model.zero_grad(set_to_none=True)
        return peak_bytes(lambda: self._forward(self._cases[-1]).backward()).peak

    def seconds(self) -> float:
        """Of one step."""
        start = time.perf_counter()
        self._forward(self._cases[-1]).backward()
        return time.perf_counter() - start


def cases_of(build: Builder) -> tuple[Case, Case]:
    """The case at its own batch, and at one half as large again.

    Raises:
        ValueError: the builder takes no batch.
    """
    parameter = inspect.signature(build).parameters.get("batch")
    if parameter is None or not isinstance(parameter.default, int):
        raise ValueError("the builder has no argument batch with a number as its default, which a dynamic batch needs")
    return build(), build(batch=parameter.default + parameter.default // 2)


def batched(case: Case) -> Sequence[int | None]:
    """For each argument the dimension that grows with the batch."""
    return case.batched or (0,) * len(case.args)


def baseline(setting: Setting) -> Callable[[torch.nn.Module], Any]:
    """Plain torch.compile, as far as the lowering goes."""
    return lambda model: plain(model, setting.lowering, dynamic(setting))


def rewritten(setting: Setting) -> Callable[[torch.nn.Module], Any]:
    """Ours."""
    bits = None if setting.bits == "exact" else int(setting.bits)
    return lambda model: fxapprox.compile(model, bits=bits, lowering=setting.lowering, dynamic=dynamic(setting))


def dynamic(setting: Setting) -> bool | None:
    """For torch.compile: None takes what is marked as dynamic."""
    return None if setting.batch == "dynamic" else False
