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
from fxapprox.ir.source import GraphBreak, graph_breaks
from fxapprox.measure.memory import peak_bytes, stored_bytes
from tools.zoo.models import Case
from tools.zoo.models.language import Apart
from tools.zoo.rows import AVERAGE_BITS, Setting
from tools.zoo.training import plain

Builder = Callable[..., Case]
SEED = 1


@dataclass(frozen=True)
class Outcome:
    """What a training step gave.

    Attributes:
        loss: detached.
        gradients: of each parameter by name; None where there is none.
        buffers: after the step.
        stored: bytes that the autograd graph of what the model returns holds between forward and backward; parameters,
            buffers and inputs are not counted.
        held: those of them that compiled graphs hold, without what runs uncompiled between these.
    """

    loss: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    stored: int
    held: int


@dataclass(frozen=True)
class Compilation:
    """What Dynamo did for the first step, and for the first at another batch.

    Attributes:
        graphs: compiled for the first step.
        breaks: between them.
        recompiled: graphs compiled anew for the second batch.
        warnings: in the order in which they were given, each once.
        reports: of the graphs of the first step.
        held: bytes that these held in it.
    """

    graphs: int
    breaks: tuple[GraphBreak, ...]
    recompiled: int
    warnings: tuple[str, ...]
    reports: tuple[fxapprox.Report, ...]
    held: int


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
        parts = [module for module in self.model.modules() if isinstance(module, Apart)]
        for part in parts:
            for i, module in enumerate(part):
                part[i] = compiled(module)
        self.compiled = [module for part in parts for module in part] or [compiled(self.model)]
        self.run = self.model if parts else self.compiled[0]

    def first(self, *, ours: bool = False) -> tuple[Outcome, Compilation]:
        """Compiles, and runs the step that is measured: with dynamic batches the first at the second one.

        Args:
            ours: whether fxapprox compiled it, and has reports.
        """
        with warnings.catch_warnings(record=True) as caught, adapter.graph_breaks() as raw:
            warnings.simplefilter("always")
            before = adapter.graphs_compiled()
            outcome = self._step(self._cases[0])
            graphs, reports = adapter.graphs_compiled() - before, self._reports() if ours else ()
            held = outcome.held
            if len(self._cases) > 1:
                outcome = self._step(self._cases[1])
            recompiled = adapter.graphs_compiled() - before - graphs
        said = dict.fromkeys(" ".join(str(w.message).split()) for w in caught)
        return outcome, Compilation(graphs, graph_breaks(raw), recompiled, tuple(said), reports, held)

    def _reports(self) -> tuple[fxapprox.Report, ...]:
        return tuple(report for module in self.compiled for report in fxapprox.reports(module))

    def _step(self, case: Case) -> Outcome:
        returned, loss = self._forward(case)
        model = self.model
        alive = [*model.parameters(), *model.buffers(), *case.args]
        stored, held = stored_bytes(returned, exclude=alive), held_by_graphs(returned, alive)
        del returned
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        return Outcome(loss.detach(), gradients, {n: b.clone() for n, b in model.named_buffers()}, stored, held)

    def _forward(self, case: Case) -> tuple[Any, Tensor]:
        """What the model returns, and the loss; from no gradients and the same random numbers every time."""
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(SEED)
        with self._autocast(), self._sizes(case):
            returned = self.run(*case.args)
            return returned, case.loss(returned)

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.setting.precision == "bf16" else nullcontext()

    def _sizes(self, case: Case) -> Any:
        if len(self._cases) == 1:
            return nullcontext()
        return adapter.marked_dynamic(case.args, [() if at is None else (at,) for at in batched(case)])

    def peak(self) -> int:
        """Bytes by which a step raises the memory in use."""
        self.model.zero_grad(set_to_none=True)
        return peak_bytes(lambda: self._forward(self._cases[-1])[1].backward()).peak

    def seconds(self) -> float:
        """Of one step."""
        start = time.perf_counter()
        self._forward(self._cases[-1])[1].backward()
        return time.perf_counter() - start


def held_by_graphs(returned: Any, alive: Sequence[Tensor]) -> int:
    """Bytes that the nodes of compiled graphs hold, each storage once."""
    stack, seen = [tensor.grad_fn for tensor in adapter.tensors_in(returned)], set()
    known = {tensor.untyped_storage().data_ptr() for tensor in alive}
    found: dict[int, int] = {}
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
        if "CompiledFunction" in node.name():
            for tensor in (*getattr(node, "saved_tensors", ()), *(getattr(node, "_tensors_no_vc_check", None) or ())):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in known:
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


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
    chosen = our_options(setting)
    return lambda model: fxapprox.compile(model, lowering=setting.lowering, dynamic=dynamic(setting), **chosen)


def our_options(setting: Setting) -> dict[str, Any]:
    """What of fxapprox's options the number of bits stands for."""
    named: dict[str, Any] = {"exact": {"bits": None}, "auto": {"bits": "auto", "average_bits": AVERAGE_BITS}}
    return named.get(setting.bits) or {"bits": int(setting.bits)}


def dynamic(setting: Setting) -> bool | None:
    """For torch.compile: None takes what is marked as dynamic."""
    return None if setting.batch == "dynamic" else False
