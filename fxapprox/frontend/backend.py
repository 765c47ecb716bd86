"""The way in: ``fxapprox.compile`` and the torch.compile backend of the same name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from types import MethodType
from typing import Any

import torch
from torch import fx
from typing_extensions import Unpack

from fxapprox import torch_adapter as adapter
from fxapprox.errors import FxApproxError, OptionError, shown
from fxapprox.frontend.bounded import Bounded, Session
from fxapprox.frontend.cache_key import cache_key
from fxapprox.frontend.ledger import Entrance, Graph, Ledger, current, ran
from fxapprox.frontend.saved import note_saved
from fxapprox.memory.between import Between, Link
from fxapprox.options import (
    ENVIRONMENT,
    NAMES,
    OptionKeywords,
    Options,
    documented,
    from_environment,
    require_names,
    unknown_option,
)
from fxapprox.passes.rewrite import Rewrite, for_inductor, rewrite
from fxapprox.passes.runner import Clock
from fxapprox.report.accounting import report_of
from fxapprox.report.result import Report
from fxapprox.show import log

COMPILERS = {"inductor": adapter.compile_inductor, "eager": adapter.compile_eager}


@dataclass(eq=False)
class Backend:
    """A torch.compile backend with its options; it knows nothing of the models that it compiles.

    Two with equal options are equal, so that Dynamo runs what one has compiled for the models of the other, too. It
    asks at each call and keeps every backend for good.

    Attributes:
        options: ours.
        inductor: settings that pass through to Inductor.
    """

    options: Options
    inductor: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        if kwargs:
            raise OptionError(f"unexpected {sorted(kwargs)}: give options to fxapprox.compile")
        ledger = current()
        link = (ledger.between if ledger is not None else Between()).link(gm, inputs)
        if self.options.error is None:
            return self._noted(*self._compiled(gm, inputs, link, self.options), ledger)
        if not _trains(inputs):
            return self._noted(*self._compiled(gm, inputs, link, replace(self.options, error=None)), ledger)
        session = ledger.session if ledger is not None else Session()

        def compiled(options: Options) -> tuple[Callable[..., Any], Report | None]:
            run, report = self._compiled(gm, inputs, link, options)
            return self._noted(run, report, ledger), report

        bounded = Bounded(gm, inputs, link, self.options, session, compiled)
        bounded.first = self._noted(bounded.first, None, ledger)
        return bounded

    def _compiled(
        self, gm: fx.GraphModule, inputs: Sequence[Any], link: Link, options: Options
    ) -> tuple[Callable[..., Any], Report | None]:
        """A graph of Dynamo's, compiled for some options, and its report."""
        reports: list[Report] = []
        partitioner = adapter.JointPartitioner(self.partition_of(gm, link, reports, options), cache_key(options))
        compiled = link.watched(COMPILERS[options.lowering](gm, inputs, partitioner, dict(self.inductor)))
        report = reports[-1] if reports else None
        reports.clear()  # what is compiled holds on to the partitioner
        return compiled, report

    @staticmethod
    def _noted(compiled: Callable[..., Any], report: Report | None, ledger: Ledger | None) -> Callable[..., Any]:
        """What is compiled, entered in the ledgers of those who run it."""
        graph = Graph(report)
        if ledger is not None:
            ledger.add(graph, report)

        def run(*args: Any) -> Any:
            ran(graph)
            return compiled(*args)

        return run

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Backend) or not type(self) is type(other) is Backend:
            return self is other
        return self._identity == other._identity and _same_policy(self.options, other.options)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Backend, (self.options, dict(self.inductor))

    @property
    def _identity(self) -> tuple[Any, ...]:
        return replace(self.options, policy=None), dict(self.inductor)

    def options_for(self, **_: Any) -> Options:
        """The options: here they are known without what torch.compile was given."""
        return self.options

    def partition_of(
        self, traced: fx.GraphModule, link: Link, reports: list[Report], options: Options | None = None
    ) -> adapter.Partitioner:
        """The partition function for the joint graph of a graph of Dynamo's; it also adds the report to ``reports``.

        Args:
            options: in place of the backend's own.
        """
        options = self.options if options is None else options
        names = adapter.input_names(traced)

        def partition(gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any) -> adapter.Partition:
            try:
                result: Rewrite = rewrite(gm, joint_inputs, options=options, handed=link.handed, **kwargs)
            except FxApproxError as error:
                raise adapter.through_dynamo(error) from error.__cause__
            note_saved(link, result, gm)
            halves = result.forward, result.backward
            if options.lowering == "inductor":
                halves = for_inductor(result.joint, halves, result.spliced, result.slices, Clock(result.seconds))
            report = report_of(result, lowering=options.lowering, names=names)
            reports.append(replace(report, options=self.options))
            ledger = current()
            log.compiled(reports[-1], len(ledger.reports) if ledger is not None else len(reports) - 1)
            return halves

        return partition


def _trains(inputs: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in inputs)


def _same_policy(a: Options, b: Options) -> bool:
    """Whether two policies choose alike for all that can be known: one function, or functions of one ``uuid``."""
    first, second = a.policy, b.policy
    if first is second or (isinstance(first, MethodType) and isinstance(second, MethodType) and first == second):
        return True
    uuid = getattr(first, "uuid", None)
    return uuid is not None and type(first) is type(second) and uuid == getattr(second, "uuid", None)


class Named:
    """The backend of one model that is compiled by ``torch.compile(model, backend="fxapprox", options={...})``.

    Our options and Inductor's share one mapping there; a name that neither knows is an error. Where the mapping has
    none of ours, they come from the environment as it is when the model is compiled: see
    :func:`fxapprox.options.from_environment`.
    """

    def __init__(self, environment: str | None = None) -> None:
        self._environment = os.environ.get(ENVIRONMENT, "") if environment is None else environment
        self._backend: Backend | None = None

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any], **given: Any) -> Callable[..., Any]:
        try:
            return self._known(**given)(gm, inputs)
        except FxApproxError as error:
            raise adapter.through_dynamo(error) from error.__cause__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self._environment == other._environment

    def __hash__(self) -> int:
        return hash(self._environment)

    def __reduce__(self) -> tuple[Any, ...]:
        return Named, (self._environment,)

    def options_for(self, **given: Any) -> Options:
        """The options for what torch.compile was given."""
        return self._known(**given).options

    def _known(self, mode: str | None = None, options: Mapping[str, Any] | None = None) -> Backend:
        if self._backend is None:
            require_names(given := {} if options is None else options)
            ours = {name: value for name, value in given.items() if name in NAMES}
            others = {name: value for name, value in given.items() if name not in NAMES}
            chosen = Options.parse(ours) if ours else from_environment(self._environment)
            chosen.warn_of_idle()
            self._backend = Backend(chosen, {**_mode(mode), **_inductor(others)})
        return self._backend


def _named() -> Named:
    found = Named()
    adapter.enter_when_wrapped(found, Entrance())
    return found


def __getattr__(name: str) -> Any:
    """``backend`` is what torch.compile finds by our name: made for the model that it is about to compile."""
    if name != "backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    adapter.make_at_lookup("fxapprox", _named)
    return _named()


def compile(
    model: Callable[..., Any],
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    options: Mapping[str, Any] | None = None,
    **ours: Unpack[OptionKeywords],
) -> Any:
    """Compiles a model so that training it stores its activations in few bits; forward stays exact.

    Example::

        compiled = fxapprox.compile(model, bits=4)
        loss_fn(compiled(images), labels).backward()
        print(fxapprox.reports(compiled)[0])

    Where Dynamo breaks a graph, each piece is rewritten by itself and has a report of its own; what one hands to the
    next stays as it is. A graph that cannot be rewritten is stored exactly, with a warning that names the node (an
    error with ``strict=True``); so is one of which torch's own partition stores less. ``fallback`` in its report says
    why. ``fxapprox.explain`` takes the same options and shows beforehand what would be stored.

    Args:
        model: a module or a function, as for torch.compile.
        mode, dynamic, fullgraph: as for torch.compile.
        options: settings for Inductor.
        ours: see below, and :class:`Options`.

    Returns: what torch.compile returns.

    Raises:
        OptionError: an option is unknown or its value invalid.
    """
    if not callable(model):
        raise OptionError(f"expected a module or a function to compile, got {type(model).__name__}")
    patches = {**_mode(mode), **_inductor({} if options is None else options)}
    parsed = Options.parse(ours)
    parsed.warn_of_idle()
    parsed.check_patterns(model)
    return wrapped(model, Backend(parsed, patches), dynamic=dynamic, fullgraph=fullgraph)


compile.__doc__ = f"{cleandoc(compile.__doc__ or '')}\n\nOptions:\n{documented()}\n"


def wrapped(model: Callable[..., Any], backend: Backend, **kwargs: Any) -> Any:
    """What torch.compile returns for a model and a backend of ours; it has a ledger from its first call on."""
    compiled = torch.compile(model, backend=backend, **kwargs)
    adapter.enter_at_calls(compiled, Entrance())
    return compiled


def _mode(mode: str | None) -> dict[str, Any]:
    if mode is not None and not isinstance(mode, str):
        raise OptionError(f"mode={shown(mode)}: expected the name of one of torch.compile's modes")
    try:
        return adapter.inductor_mode(mode)
    except RuntimeError as error:
        raise OptionError(f"mode={shown(mode)}: {error}") from None


def _inductor(options: Mapping[str, Any]) -> dict[str, Any]:
    require_names(options)
    known = adapter.inductor_option_names()
    patches = {name.replace("-", "_"): value for name, value in options.items()}
    for name in patches:
        if name not in known:
            raise OptionError(unknown_option(name, (*NAMES, *known)))
    return patches
