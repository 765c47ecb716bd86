"""The way in: ``fxapprox.compile`` and the torch.compile backend of the same name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fxapprox import logs
from fxapprox import torch_adapter as adapter
from fxapprox.between import Between, Link
from fxapprox.errors import FxApproxError, OptionError, shown
from fxapprox.held import saved_by
from fxapprox.options import NAMES, Options, from_environment, require_names, unknown_option
from fxapprox.passes.outline import outline
from fxapprox.passes.pipeline import Rewrite, cache_key, rewrite
from fxapprox.report import Report, report_of

COMPILERS = {"inductor": adapter.compile_inductor, "eager": adapter.compile_eager}


@dataclass(eq=False)
class Backend:
    """A torch.compile backend with its options, and the reports of the graphs it has compiled.

    Attributes:
        options: ours.
        inductor: settings that pass through to Inductor.
        reports: one for each training graph, in the order of compilation.
        between: what its graphs hand on to one another.
    """

    options: Options
    inductor: Mapping[str, Any] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    between: Between = field(default_factory=Between)

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        if kwargs:
            raise OptionError(f"unexpected {sorted(kwargs)}: give options to fxapprox.compile")
        link = self.between.link(gm, inputs)
        partitioner = adapter.JointPartitioner(self.partition_of(gm, link), cache_key(self.options))
        return link.watched(COMPILERS[self.options.lowering](gm, inputs, partitioner, dict(self.inductor)))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, and what comes out of a pickle, has compiled nothing yet: graphs stay where they run."""
        return Backend, (self.options, dict(self.inductor))

    def partition_of(self, traced: fx.GraphModule, link: Link) -> adapter.Partitioner:
        """The partition function for the joint graph of a graph of Dynamo's; it also writes the report."""
        names = adapter.input_names(traced)

        def partition(gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any) -> adapter.Partition:
            try:
                result: Rewrite = rewrite(gm, joint_inputs, options=self.options, handed=link.handed, **kwargs)
            except FxApproxError as error:
                raise adapter.through_dynamo(error) from error.__cause__
            count, saved = result.joint.num_fwd_outputs, set(result.baseline)
            link.note(
                (result.forward.graph, saved_by(result.forward, count)),
                (gm.graph, [node for node in gm.graph.nodes if node.name in saved]),
                num_fwd_outputs=count, counted=result.counted | result.counted_for_plain,
            )  # fmt: skip
            halves = result.forward, result.backward
            if self.options.lowering == "inductor":
                start = time.perf_counter()
                halves = outline(*halves, result.spliced)
                result.seconds["outline"] = time.perf_counter() - start
            report = report_of(result, lowering=self.options.lowering, names=names)
            self.reports.append(replace(report, options=self.options))
            logs.compiled(self.reports[-1], len(self.reports) - 1)
            return halves

        return partition


ATTACHED = "_fxapprox_backend"  # where torch.compile's wrapper of a backend named by a string keeps ours


def compile(
    model: Callable[..., Any],
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    options: Mapping[str, Any] | None = None,
    **ours: Any,
) -> Any:
    """Compiles a model so that training it stores its activations in few bits; forward stays exact.

    Args:
        model: a module or a function, as for torch.compile.
        mode, dynamic, fullgraph: as for torch.compile.
        options: settings for Inductor.
        **ours: see :class:`Options`: bits, rounding, min_bytes, policy, lowering, strict.

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
    return torch.compile(model, backend=Backend(parsed, patches), dynamic=dynamic, fullgraph=fullgraph)


def backend(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend that ``torch.compile(model, backend="fxapprox", options={...})`` finds by its name.

    Our options and Inductor's share one mapping there; a name that neither knows is an error. Where the mapping has
    none of ours, they come from the environment: see :func:`fxapprox.options.from_environment`.
    """
    owner = adapter.calling_compiler()
    found = getattr(owner, ATTACHED, None)
    if found is None:
        found = _named(mode, options or {})
        if owner is not None:
            setattr(owner, ATTACHED, found)
    return found(gm, inputs)


def _named(mode: str | None, options: Mapping[str, Any]) -> Backend:
    """The backend for what ``torch.compile(backend="fxapprox")`` was called with."""
    try:
        require_names(options)
        ours = {name: value for name, value in options.items() if name in NAMES}
        others = {name: value for name, value in options.items() if name not in NAMES}
        parsed = Options.parse(ours) if ours else from_environment()
        parsed.warn_of_idle()
        return Backend(parsed, {**_mode(mode), **_inductor(others)})
    except FxApproxError as error:
        raise adapter.through_dynamo(error) from error.__cause__


def backend_of(compiled: object) -> Backend | None:
    """The backend behind what torch.compile returned; None if it is not ours, or has not compiled anything yet."""
    owner = adapter.compiler_of(compiled)
    inner = getattr(owner, "compiler_fn", owner)
    return inner if isinstance(inner, Backend) else getattr(owner, ATTACHED, None)


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
