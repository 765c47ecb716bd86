"""``error=``: the first training step of a graph is exact and measures; the others are compiled for what came out.

Each graph of a model chooses for itself when its backward has run (``bound_measured.py``), within its share of the
bound: errors that graphs behind it hand on add to its own. It is compiled when it runs next. The processes of
DistributedDataParallel take what the first of them has chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import fx, nn

from fxapprox import torch_adapter as adapter
from fxapprox.amounts import size_text
from fxapprox.bits import DEFAULT, PROVISIONAL
from fxapprox.frontend.bound_measured import Found, measured, tried
from fxapprox.frontend.probing import Probed, Replay, compile_probed
from fxapprox.memory.between import Link
from fxapprox.options import Options
from fxapprox.report.result import Report

Compiled = tuple[Callable[..., Any], Report | None]


class Session:
    """The graphs of one model.

    Attributes:
        graphs: those that have run.
    """

    def __init__(self) -> None:
        self.graphs: set[Bounded] = set()


class Bounded:
    """One graph of Dynamo's, as a function.

    Args:
        gm, inputs, link: the graph, what it is compiled with, and what it gets from and hands to other graphs.
        options: the user's, ``error`` among them.
        session: that of the model.
        compiled: compiles the graph for other options.

    Attributes:
        first: runs it exactly, and measures in backward; None when that is over.
    """

    def __init__(
        self, gm: fx.GraphModule, inputs: Sequence[Any], link: Link, options: Options, session: Session,
        compiled: Callable[[Options], Compiled],
    ) -> None:  # fmt: skip
        self._options, self._session = options, session
        self._compiled: Any = compiled
        self._parameters = frozenset(i for i, value in enumerate(inputs) if isinstance(value, nn.Parameter))
        self._inputs = len(inputs)
        self._found: Found | None = None
        self._final: Callable[..., Any] | None = None
        self._in_compilation: Any = adapter.in_this_compilation(inputs)
        self._probing = replace(
            options, error=None, bits=PROVISIONAL, lowering="eager", slices=None, checkpoint=None, checkpoint_bits=None
        )
        self.first: Any = compile_probed(gm, inputs, link, self._probing, tried, lambda _: None, self._measure)

    def __call__(self, *args: Any) -> Any:
        if self._final is None and self in self._session.graphs:
            found = adapter.agreed_on(self._found)
            if found is not None:
                self._finish(found)
        if self._final is not None:
            return self._final(*args)
        self._session.graphs.add(self)
        return self.first(*args)

    def _measure(self, probed: Probed, replay: Replay) -> None:
        if self._found is not None:
            return
        whole = len(probed.result.joint.outputs[1]) == self._inputs
        own = self._parameters if whole else frozenset(range(len(replay.exact)))
        assert self._options.error is not None
        with _bar() as advance:
            self._found = measured(
                probed, replay, self._probing, self._options.error / math.sqrt(len(self._session.graphs)),
                parameters=own, advance=advance,
            )  # fmt: skip

    def _finish(self, found: Found) -> None:
        """Compiles the graph for what was found, and says so."""
        options = replace(self._options, error=None, bits=DEFAULT if found.plan else None, plan=found.plan)
        with self._in_compilation():
            self._final, report = self._compiled(options)
        # these hold the inputs of the first step, and the model's ledger
        self.first = self._compiled = self._in_compilation = None
        if report is not None and adapter.is_first_process():
            Console(stderr=True, soft_wrap=True, highlight=False).print(_line(self._options, found, report))


def _line(options: Options, found: Found, report: Report) -> str:
    stored = f"{size_text(report.saved_bytes)} stored instead of {size_text(report.baseline_bytes)}"
    if found.plan is None:
        return f"fxapprox: error={options.error:g}: {stored}, exactly: no code keeps the bound, or saves by it"
    return (
        f"fxapprox: error={options.error:g}: gradients off by {found.error:.2%}, the worst parameter's by"
        f" {found.worst:.2%}; {stored}; measured in {found.seconds:.1f} s, the time of {found.steps:.0f} steps"
    )


@contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    """Shows progress in a terminal."""
    console = Console(stderr=True)
    with Progress(disable=not console.is_terminal, transient=True, console=console) as bar:
        task = bar.add_task("fxapprox measures the error of each code", total=1.0)
        yield lambda share: bar.update(task, completed=share)
