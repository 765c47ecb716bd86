"""Reports without training: of a model that has not run (fake tensors only), and of one that has."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from typing_extensions import Unpack

from fxapprox import torch_adapter as adapter
from fxapprox.collector import collector_paused
from fxapprox.errors import FxApproxError, ModelError
from fxapprox.frontend.backend import Backend, Named
from fxapprox.frontend.checks import wrong_model
from fxapprox.frontend.ledger import Graph, ledger_of
from fxapprox.frontend.meta_device import stand_ins
from fxapprox.frontend.tracing import fresh, nothing_captured, untouched
from fxapprox.ir.source import described, graph_breaks
from fxapprox.memory.between import Between
from fxapprox.options import OptionKeywords, Options
from fxapprox.report.merge import merge
from fxapprox.report.result import Report


class _Explainer(Backend):
    """Traces and plans like the backend, compiles nothing, and answers with zeros.

    Attributes:
        fake: the mode of the zeros where they are to be fake; else None.
        reports: one for each run of a training graph.
        between: what they hand on to one another.
    """

    fake: adapter.FakeTensorMode | None = None

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.reports: list[Report] = []
        self.between = Between()

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        outputs = adapter.stand_in_outputs(gm, self.fake)
        link = self.between.link(gm, inputs)
        mine: list[Report] = []
        partition = self.partition_of(gm, link, mine)

        def plan(*args: Any, **kwargs: Any) -> adapter.Partition:
            partition(*args, **kwargs)
            raise _Planned

        with suppress(_Planned):
            adapter.compile_eager(gm, inputs, adapter.JointPartitioner(plan, None), {})
        answer = link.watched(outputs)

        def run(*args: Any) -> Any:
            self.reports += mine
            return answer(*args)

        return run


class _Planned(Exception):
    """Ends a compilation when its plan is made: nobody runs what would come out of it."""


def explain(
    model: Callable[..., Any], *args: Any, dynamic: bool | None = False, **options: Unpack[OptionKeywords]
) -> Report:
    """What fxapprox would store for backward, without running a step.

    The model is traced on fake tensors: no kernel runs, and parameters, gradients, buffers and random numbers stay
    as they are. After a graph break the rest is traced on zeros, so code that branches on values may take another
    branch than it would in training.

    A model on the meta device (built under ``torch.device("meta")``) is planned as on the CPU, or on the device of its
    other tensors; its weights need no memory.

    Args:
        model: the module or function, not compiled yet.
        *args: example inputs, tensors of the sizes to plan for.
        dynamic: as for torch.compile: True plans with symbolic sizes, None with those that
            ``torch._dynamo.mark_dynamic`` marked. The choice is made for the sizes of the example, the bytes are
            expressions (``report.saved_expr``), and ``report.at`` evaluates them for other sizes.
        **options: see :class:`Options`.

    Returns: one report; for a model with several graphs their sum, with the graphs in ``report.graphs``.

    Raises:
        OptionError: an option is unknown or its value invalid.
        FxApproxError: nothing was captured, nothing in the model needs a gradient, it is compiled already, or code
            between graph breaks asks for the values of meta tensors.
        ModelError: the model raises while it is traced.
    """
    explainer = _Explainer(Options.parse(options).require_no_error("explain()"))
    explainer.options.warn_of_idle()
    explainer.options.check_patterns(model)
    if wrong := wrong_model(model):
        raise FxApproxError(f"explain() got {wrong}")
    with (
        untouched(model), stand_ins(model, args) as (given, explainer.fake), torch.enable_grad(), collector_paused(),
        adapter.graph_breaks() as raw,
    ):  # fmt: skip
        try:
            torch.compile(fresh(model), backend=explainer, dynamic=dynamic)(*given)
        except adapter.NEEDS_VALUES as error:
            raise _needs_values(error) from None
        except Exception as error:
            if isinstance(error, FxApproxError) or not adapter.failed_in_tracing(error):
                raise
            zeros = (
                "; behind a graph break explain() goes on with zeros: reports() of a step needs no such" if raw else ""
            )
            raise ModelError(f"the model failed with {described(error)}{zeros}") from error
    breaks = graph_breaks(raw)
    found, explainer.reports = explainer.reports, []  # Dynamo keeps every backend
    if not found:
        raise FxApproxError(nothing_captured(model, args, breaks))
    names = _argument_names(model, len(args))
    return replace(merge([_with_sources(report, names) for report in found]), breaks=breaks)


def reports(compiled: object) -> tuple[Report, ...]:
    """One report for each training graph that a step of a compiled model runs, in their order.

    A graph that a step runs several times, as in a loop over layers with a graph break in it, has its report as often:
    each run stores, and its bytes are those of the first. Graphs that other steps ran, with other sizes or branches,
    come behind. Graphs that several modules share (torch.compile does that with equal blocks) are reported once;
    ``report.shared`` says how many there are, each of which stores the report's bytes. A graph that was compiled for
    another model, which is gone, has a report without drawings and without other settings.

    Args:
        compiled: what ``fxapprox.compile``, or ``torch.compile(model, backend="fxapprox")``, returned; or a module with
            such inside, as DistributedDataParallel is around a compiled model: the reports of one after the other.

    Raises:
        FxApproxError: nothing in it is compiled by fxapprox, or it was called, and torch.compile compiled nothing.
    """
    parts = [part for part in adapter.compiled_parts(compiled) if _is_ours(part)]
    if not parts:
        raise FxApproxError(
            "reports() wants what fxapprox.compile or torch.compile(backend='fxapprox') returned, or a module around"
            f" it, not {type(compiled).__name__}"
        )
    ledgers = [ledger for part in parts if (ledger := ledger_of(part)) is not None]
    found: list[Report] = []
    known: set[Graph] = set()
    for ledger in ledgers:
        mine = ledger.reports
        found += [report for graph, report in mine if graph not in known]
        known |= {graph for graph, _ in mine}
    missed = [ledger for ledger in ledgers if ledger.missed and not ledger.graphs]
    if missed and not found:
        raise FxApproxError(missed[0].nothing)
    return tuple(found)


def _is_ours(compiled: object) -> bool:
    compiler = adapter.compiler_of(compiled)
    return isinstance(getattr(compiler, "compiler_fn", compiler), (Backend, Named))


def save_plan(compiled: object, path: str | Path) -> None:
    """Writes what a compiled model stores, and in which codecs, to a JSON file for ``compile(model, plan=path)``.

    Raises:
        FxApproxError: it is not compiled by fxapprox, has run no training step, or uses codecs of the user's own.
    """
    found = reports(compiled)
    if not found:
        raise FxApproxError("save_plan() wants a model that has run: no training graph has been compiled yet")
    merge(found).plan.save(path)


def _needs_values(error: Exception) -> FxApproxError:
    """For code between graph breaks that asks a tensor without memory for its values."""
    library = str(Path(torch.__file__).parent)
    *_, last = (f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(library))
    return FxApproxError(
        f"{Path(last.filename).name}:{last.lineno} in {last.name}: {last.line}: this needs the values of a tensor,"
        " which tensors on the meta device do not have; explain a smaller model that has memory, or take the line out"
        " of what is explained"
    )


def _argument_names(model: Callable[..., Any], count: int) -> list[str]:
    """What the model calls its first arguments; "args[0]" and so on where it does not name them."""
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built into C
        parameters = ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return [*named, *(f"args[{i}]" for i in range(len(named), count))][:count]


def _with_sources(report: Report, names: Sequence[str]) -> Report:
    """The report with names of inputs and sizes as the model has them; ``fresh`` has the arguments in a tuple."""

    def own(source: str) -> str:
        return re.sub(r"\bargs\[(\d+)\]", lambda found: names[int(found[1])], source)

    return replace(
        report,
        sizes=tuple(replace(symbol, source=own(symbol.source)) for symbol in report.sizes),
        inputs={node: own(name) for node, name in report.inputs.items()},
    )
