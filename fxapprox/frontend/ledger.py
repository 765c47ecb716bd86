"""Which graphs a compiled model has run. Dynamo runs one graph for all models that it serves, so nobody else knows.

A ledger belongs to one compiled model and goes with it. A graph belongs to Dynamo, which keeps it for models to come:
it holds what is small of its report, the ledgers hold the whole.
"""

from __future__ import annotations

import inspect
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fxapprox import torch_adapter as adapter
from fxapprox.errors import FxApproxError
from fxapprox.frontend.bounded import Session
from fxapprox.memory.between import Between
from fxapprox.report.result import Report

ATTACHED = "_fxapprox_ledger"  # where Dynamo's callback, which lives as long as the compiled model, keeps its ledger


class Graph:
    """A compiled graph, and who has run it.

    Attributes:
        rest: its report without graphs; None for one of inference.
        ledgers: of the compiled models that have run it.
    """

    def __init__(self, report: Report | None) -> None:
        self.rest = report.without_graphs() if report is not None else None
        self.ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()
        self._whole = weakref.ref(report) if report is not None else lambda: None
        self._function, self._thread = adapter.function_compiled(), threading.get_ident()

    @property
    def report(self) -> Report | None:
        """With its graphs as long as a model lives that has it so; None for a graph of inference."""
        return self._whole() or self.rest

    def same_as(self, other: Graph) -> bool:
        """Whether two threads have compiled the same, because neither found what the other was about to make."""
        if self._thread == other._thread or self._function != other._function or not self.rest or not other.rest:
            return False
        return replace(self.rest, seconds={}) == replace(other.rest, seconds={})


@dataclass(slots=True)
class _Call:
    """A call of a compiled model: the graphs of ours that it has run, and whether it or a model inside has run one."""

    ledger: Ledger
    ran: bool = False
    graphs: list[Graph] = field(default_factory=list)


class _Calls(threading.local):
    """The calls of compiled models that this thread is in."""

    def __init__(self) -> None:
        self.stack: list[_Call] = []


_calls = _Calls()
_lock = threading.Lock()


def current() -> Ledger | None:
    """The ledger of the model that is being called in this thread."""
    return _calls.stack[-1].ledger if _calls.stack else None


def ran(graph: Graph) -> None:
    """Notes that a graph runs; every step comes by here."""
    if _calls.stack:
        call = _calls.stack[-1]
        call.ran = True
        call.graphs.append(graph)
        if graph not in call.ledger.graphs:
            call.ledger.add(graph, graph.report)


class Ledger:
    """What one compiled model has run, and the context that Dynamo enters at each of its calls.

    Attributes:
        graphs: those that it has run, in the order in which it did so first, with the report of each; None for graphs
            of inference, and for what another thread has compiled, too.
        between: what they hand on to one another.
        session: what ``error=`` knows of them.
        longest: the graphs of the call that ran the most, one after the other: a loop over layers runs one many times.
        missed: whether a call that may train has run no graph.
    """

    def __init__(self, compiler: Any, name: str, hint: str) -> None:
        self.graphs: dict[Graph, Report | None] = {}
        self.between, self.session, self.missed = Between(), Session(), False
        self.longest: list[Graph] = []
        self._compiler, self._name, self._hint = compiler, name, hint

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, and what comes out of a pickle, has run nothing yet: graphs stay where they run."""
        return Ledger, (self._compiler, self._name, self._hint)

    def __enter__(self) -> None:
        _calls.stack.append(_Call(self))

    def __exit__(self, *_: object) -> None:
        while (call := _calls.stack.pop()).ledger is not self:
            pass  # left by an error in another context that Dynamo enters
        if len(call.graphs) > len(self.longest):
            self.longest = call.graphs
        if call.ran:
            for outer in _calls.stack[-1:]:
                outer.ran = True
        elif torch.is_grad_enabled() and sys.exc_info()[0] is None and not adapter.is_switched_off():
            self._miss()

    def add(self, graph: Graph, report: Report | None) -> None:
        """Enters a graph, which this model runs."""
        with _lock:
            if any(graph.same_as(other) for other in self.graphs):
                report = None
            else:
                graph.ledgers.add(self)
            self.graphs[graph] = report

    @property
    def reports(self) -> list[tuple[Graph, Report]]:
        """Training graphs as one call runs them, and then those of other calls.

        Each report says how many compiled models share the graph.
        """
        found = {graph: report for graph, report in self.graphs.items() if report is not None}
        told = {
            graph: replace(report, shared=count) if (count := len(graph.ledgers)) != report.shared else report
            for graph, report in found.items()
        }
        others = [graph for graph in told if graph not in self.longest]
        return [(graph, told[graph]) for graph in (*self.longest, *others) if graph in told]

    @property
    def nothing(self) -> str:
        """Why there is no graph, in words."""
        return f"nothing of {self._name} was captured: torch.compile runs it as it is, nothing is saved; {self._hint}"

    def _miss(self) -> None:
        if not self.missed and not self.graphs:
            self.missed = True
            self._tell(self.nothing)

    def give_up(self, code: types.CodeType, limit: int, reason: str) -> None:
        """Says that Dynamo has compiled a function as often as it is allowed to, and runs it as it is from now on."""
        place = f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"
        why = f"; the last time for {' '.join(reason.split())}" if reason else ""
        self._tell(
            f"{place} of {self._name} has been compiled {limit} times, and torch._dynamo.config.recompile_limit allows"
            f" no more: where no graph serves, it runs as it is, and nothing is saved{why}. Pass what changes as a"
            " tensor, mark sizes with torch._dynamo.mark_dynamic, or raise the limit"
        )

    def _tell(self, message: str) -> None:
        compiler = self._compiler
        if compiler.compiler_fn.options_for(**compiler.kwargs).strict:
            raise FxApproxError(message)
        warnings.warn(f"fxapprox: {message}", stacklevel=2)


class Entrance:
    """What Dynamo asks at each call of one compiled model for the context to enter: its ledger."""

    def __init__(self) -> None:
        self._ledger: Callable[[], Ledger | None] = lambda: None

    def __reduce__(self) -> tuple[Any, ...]:
        return Entrance, ()

    def __call__(self) -> Ledger:
        return self._ledger() or self._made()

    def _made(self) -> Ledger:
        call = adapter.beginning_call()
        ledger = getattr(call.callback, ATTACHED, None)
        if ledger is None:
            ledger = Ledger(adapter.innermost(call.callback), *_described(call.function))
            setattr(call.callback, ATTACHED, ledger)
            adapter.limit_by_model(call.callback, ledger.give_up)
        self._ledger = weakref.ref(ledger)
        return ledger


def ledger_of(compiled: object) -> Ledger | None:
    """The ledger of what torch.compile returned; None if it is not ours, or has not been called yet."""
    return getattr(adapter.callback_of(compiled), ATTACHED, None)


def _described(function: Callable[..., Any]) -> tuple[str, str]:
    """What was compiled, by its name, and what to do if torch.compile does not trace it."""
    inner = inspect.unwrap(function)
    owner = getattr(inner, "__self__", inner)
    if not isinstance(owner, nn.Module):
        return getattr(inner, "__qualname__", "the model"), "TORCH_LOGS=graph_breaks,recompiles shows why"
    name = type(owner).__qualname__
    if isinstance(owner, nn.RNNBase):
        return name, "it traces LSTM, GRU and RNN where torch._dynamo.config.allow_rnn is set"
    if type(owner).forward.__module__.startswith("torch.") and inner is not owner:
        return name, "compiled in place it skips modules of torch's own: use fxapprox.compile(model)"
    return name, "TORCH_LOGS=graph_breaks,recompiles shows why"
