"""Gradients of one model in several ways: exact and in each number of bits, of the same batches and random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxapprox import torch_adapter as adapter
from fxapprox.errors import FxApproxError, OptionError
from fxapprox.frontend.backend import Backend, wrapped
from fxapprox.frontend.checks import no_gradient, wrong_loss, wrong_model
from fxapprox.frontend.explain import reports
from fxapprox.frontend.target import Target
from fxapprox.frontend.tracing import fresh, nothing_captured, untouched
from fxapprox.ir.source import GraphBreak, graph_breaks
from fxapprox.measure.batches import Batch, Loss
from fxapprox.measure.gradient_error import Tally, total_error
from fxapprox.options import Options
from fxapprox.report.merge import merge
from fxapprox.report.result import Report


class Subject:
    """A model with its loss, and its parameters.

    Args:
        compile_loss: whether the loss is compiled with the model.
        seed: random numbers of batch i start from ``seed + i``.
    """

    def __init__(self, model: nn.Module, loss: Loss, compile_loss: bool, seed: int) -> None:
        if not isinstance(model, nn.Module):
            raise OptionError(f"audit wants a module, whose parameters it can see, not {type(model).__name__}")
        if wrong := wrong_model(model):
            raise FxApproxError(f"audit got {wrong}")
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise FxApproxError(f"{no_gradient(model, ())}: there is nothing to compare")
        self.model, self.loss, self.compile_loss, self.seed = model, loss, compile_loss, seed
        self.names, self.parameters = list(named), list(named.values())
        self.step = Target(model, (), loss.function if compile_loss else None).step

    def gradients(self, run: Callable[..., Any], batch: Batch, index: int) -> tuple[Tensor, list[Tensor]]:
        """The loss of one batch, and its gradients; zeros for parameters that it does not depend on."""
        with untouched(self.model), torch.enable_grad():
            torch.manual_seed(self.seed + index)
            self.loss.use(batch)
            output = run(*batch.args)
            loss = output if self.compile_loss else self.loss(output, batch.targets)
            if wrong := wrong_loss(loss):
                hint = "" if self.loss.function else " from the model; a loss_fn makes one of its output"
                raise FxApproxError(f"audit got {wrong}{hint}")
            if not math.isfinite(loss.item()):
                raise FxApproxError(f"the loss of batch {index + 1} is {loss.item()}: no gradient can be compared")
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        zeros = (torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True))
        return loss.detach(), list(zeros)


class Way:
    """One way to store, its report, and its errors so far: a tally for each parameter."""

    def __init__(self, subject: Subject, options: Options) -> None:
        options.check_patterns(subject.model)
        self.subject, self.options, self.graphs = subject, options, 0
        self._run = wrapped(fresh(subject.step), Backend(options), dynamic=False)
        self.tallies = [Tally() for _ in subject.names]

    def gradients(self, batch: Batch, index: int) -> tuple[Tensor, list[Tensor]]:
        """The loss and the gradients of one batch, stored this way."""
        found = self.subject.gradients(self._run, batch, index)
        self.graphs = self.graphs or len(reports(self._run))
        return found

    @property
    def report(self) -> Report:
        """Of the first batch."""
        return merge(reports(self._run)[: self.graphs])


class Runs:
    """Everything that is run.

    Attributes:
        exact, coded: exact mode, and one way for each number of bits, over whole batches.
        pairs: the ways whose tallies tell bias and noise apart, in the order of ``coded``; none where nothing does.
        floor: how far exact gradients are from those of the model run as it is; None if it draws random numbers.
        breaks: the graph breaks of exact mode.
        strayed: the numbers of bits in which the loss was another one.
    """

    def __init__(
        self, subject: Subject, ways: Sequence[Options], whole: Sequence[Batch], parts: Sequence[Batch]
    ) -> None:
        self.subject, self.whole, self.parts = subject, whole, parts
        self.exact, *self.coded = (Way(subject, way) for way in ways)
        self._exact_parts, self.pairs = self.exact, self.coded if len(whole) > 1 else []
        if parts:  # their tensors are smaller
            halves = [replace(way, min_bytes=way.min_bytes // len(parts)) for way in ways]
            self._exact_parts, *self.pairs = (Way(subject, half) for half in halves)
        self.floor: float | None = None
        self.breaks: tuple[GraphBreak, ...] = ()
        self.strayed: set[Any] = set()

    @property
    def steps(self) -> int:
        """How many there are to run."""
        return (len(self.whole) + len(self.parts)) * (1 + len(self.coded)) + 1

    def run(self) -> Iterator[None]:
        """Runs them all; gives something after each."""
        with adapter.graph_breaks() as raw:
            self.floor = _floor(self.subject, self.exact, self.whole[0])
        self.breaks = graph_breaks(raw)
        if not self.exact.graphs:
            raise FxApproxError(nothing_captured(self.subject.model, self.whole[0].args, self.breaks))
        yield
        yield from self._compared(self.whole, self.exact, self.coded)
        yield from self._compared(self.parts, self._exact_parts, self.pairs)

    def _compared(self, batches: Sequence[Batch], exact: Way, coded: Sequence[Way]) -> Iterator[None]:
        for index, batch in enumerate(batches):
            loss, gradients = exact.gradients(batch, index)
            yield
            for way in coded:
                own, found = way.gradients(batch, index)
                for tally, mine, other in zip(way.tallies, found, gradients, strict=True):
                    tally.add(mine, other)
                if not torch.allclose(own, loss, rtol=1e-4):
                    self.strayed.add(way.options.bits)
                yield


def _floor(subject: Subject, exact: Way, batch: Batch) -> float | None:
    """How far exact gradients are from those of the model run as it is; None if it draws random numbers."""
    _, found = exact.gradients(batch, 0)
    drawn = [False]

    def watched(*args: Any) -> Any:
        before = _random_states()
        output = subject.step(*args)
        drawn[0] = any(not torch.equal(a, b) for a, b in zip(before, _random_states(), strict=False))
        return output

    _, plain = subject.gradients(watched, batch, 0)
    if drawn[0]:
        return None
    tallies = [Tally() for _ in plain]
    for tally, mine, other in zip(tallies, found, plain, strict=True):
        tally.add(mine, other)
    return total_error(tallies).error


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]
