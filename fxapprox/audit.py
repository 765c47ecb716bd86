"""The error of a model's gradients in each number of bits, measured against exact ones, and where it comes from.

Every batch is run exactly and in each number of bits, from the same random numbers, so that dropout's masks are the
same. Nothing of the model changes: gradients are asked for, not accumulated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from fxapprox import torch_adapter as adapter
from fxapprox.backend import Backend
from fxapprox.batches import Batch, Loss, batches_of, parts_of
from fxapprox.calibrate import Prober, as_stored
from fxapprox.checks import no_gradient, wrong_loss, wrong_model
from fxapprox.codecs import Codec
from fxapprox.errors import FxApproxError, OptionError
from fxapprox.explain import fresh, nothing_captured, untouched
from fxapprox.gradient_error import GradientError, Tally, total_error
from fxapprox.options import Options
from fxapprox.report import Report, merge
from fxapprox.target import Target
from fxapprox.user_code import GraphBreak, graph_breaks

SCHEMA = 1
CHOSEN = ("plan", "memory_budget")  # options that leave no number of bits to try


@dataclass(frozen=True, slots=True)
class ParameterError:
    """The error of one parameter's gradient.

    Attributes:
        name: as ``named_parameters`` has it.
        elements: how many the parameter has.
        norm: of its exact gradient, over all batches: sqrt(mean ||g||^2); 0 for one without a gradient.
        error: see ``GradientError``.
    """

    name: str
    elements: int
    norm: float
    error: GradientError


@dataclass(frozen=True, slots=True)
class Cause:
    """What one stored value does to the gradients.

    Attributes:
        value: node name in the joint graph.
        module, source: path of the module that made it, and the user's source line.
        storage: how it is stored.
        bits: an element of it.
        error: the relative error of all gradients with this value decoded from its code and all others exact.
        share: of the sum of all values' squared errors, which predicts the square of the whole plan's.
    """

    value: str
    module: str
    source: str
    storage: str
    bits: int
    error: float
    share: float


@dataclass(frozen=True, slots=True)
class BitsAudit:
    """One number of bits.

    Attributes:
        bits: as it was asked for.
        total: the error of all parameters together.
        parameters: the error of each, in the model's order.
        causes: the stored values, worst first; measured on the first batch, without checkpoints.
        saved_bytes: what is stored for backward; for parts of a batch, that of the whole batch.
    """

    bits: int | str | None
    total: GradientError
    parameters: tuple[ParameterError, ...]
    causes: tuple[Cause, ...]
    saved_bytes: int

    @property
    def label(self) -> str:
        """ "8 bits", "exact", "auto"."""
        return "exact" if self.bits is None else f"{self.bits} bits" if isinstance(self.bits, int) else self.bits


@dataclass(frozen=True)
class Audit:
    """The gradient errors of a model.

    Attributes:
        settings: one for each number of bits, in the order that was asked for.
        baseline_bytes: what plain torch.compile would store for backward.
        exact_bytes: what exact mode stores, which errors are measured against.
        floor: relative distance of exact mode's gradients from those of the model run as it is, without torch.compile:
            errors near it are rounding of float arithmetic, and decisions on values near zero that rounding turns.
            None where the model draws random numbers, which differ.
        batches: how many were measured.
        parts: how many parts of the batch bias and noise were told apart by; 0 where the batches themselves served.
        notes: what limits these numbers, in words.
        breaks: the model's graph breaks; what crosses one is stored as it is.
    """

    settings: tuple[BitsAudit, ...]
    baseline_bytes: int
    exact_bytes: int
    floor: float | None
    batches: int
    parts: int
    notes: tuple[str, ...] = ()
    breaks: tuple[GraphBreak, ...] = ()

    def at(self, bits: int | str | None) -> BitsAudit:
        """The errors in this number of bits.

        Raises:
            OptionError: it was not measured.
        """
        for setting in self.settings:
            if setting.bits == bits:
                return setting
        raise OptionError(f"bits={bits!r} was not measured: {', '.join(s.label for s in self.settings)} were")

    @property
    def recommendation(self) -> str:
        """What to use, in one sentence; see ``fxapprox.advice`` for how it comes from the numbers."""
        from fxapprox.advice import recommend

        return recommend(self)

    def to_json(self) -> str:
        """All fields, and the recommendation; ``schema`` grows by one when a field changes its meaning.

        Numbers that cannot be told, or are not finite, are null.
        """
        content = {"schema": SCHEMA, **asdict(self), "recommendation": self.recommendation}
        return json.dumps(_finite(content), indent=1)

    def __str__(self) -> str:
        from fxapprox.audit_text import audit_text

        return audit_text(self)


def audit(
    model: nn.Module,
    loss_fn: Callable[..., Tensor] | None,
    batch: Any,
    bits: Sequence[int | str | None] = (8, 4, 2),
    *,
    batches: int = 4,
    targets: int = 0,
    causes: bool = True,
    compile_loss: bool = False,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Audit:
    """Measures how far gradients in each number of bits are from exact ones, how much of that is noise, and its causes.

    Exact means ``bits=None``, run in the same way. Errors of several batches are told apart into their mean, the bias,
    and what averages out: the squared bias is the mean inner product of two batches' errors, which has the right
    expectation whatever their variance (``fxapprox.gradient_error.mean_of_pairs``). A single batch is run whole for its
    error, and again in equal parts for bias and noise; a batch normalization takes other statistics in a part.
    Parameters, gradients, buffers and random numbers stay as they are.

    Takes (1 + len(bits)) training steps a batch, one without torch.compile, and, for the causes, about as many backward
    passes for each number of bits as there are stored values.

    Args:
        model: a module that is not compiled, in the mode to train in.
        loss_fn: from what the model returns to a scalar, as for ``calibrate``; None: the model returns the loss. For a
            single batch, tensors in its closure that have as many rows as the batch are split with it.
        batch: a tensor, or a tuple or list of arguments; any other iterable (a DataLoader, a generator) is taken for
            several batches, each a tensor, tuple or list.
        bits: numbers of bits to try: 8, 4, 2, None or "auto".
        batches: how many: an iterable's first so many are run, a single batch is split into so many equal parts; 1:
            bias and noise are not told apart.
        targets: how many elements at the end of each batch the loss gets, after the output: with 1, a batch (x, y)
            gives ``loss_fn(model(x), y)``.
        causes: also measure what each stored value does.
        compile_loss: compile the loss with the model, as ``fxapprox dump`` does.
        seed: random numbers of batch i start from ``seed + i``.
        progress: show a progress bar on stderr.
        **options: see :class:`Options`; the lowering is "eager" unless it is given.

    Raises:
        OptionError: an option or a number of bits is unknown or invalid, or there is no batch.
        FxApproxError: nothing was captured, the loss is no finite scalar with a gradient, or the model has none.
    """
    if type(batches) is not int or batches < 1:
        raise OptionError(f"batches={batches!r}: expected 1 or more")
    ways = _settings(bits, options)
    loss = Loss(loss_fn)
    whole = batches_of(batch, batches, targets, loss)
    parts = parts_of(whole[0], batches) if len(whole) == 1 and min(batches, whole[0].examples) > 1 else []
    subject = _Subject(model, loss, compile_loss, seed)
    exact, *coded = (_Way(subject, way) for way in ways)
    halves = [_Way(subject, replace(way, min_bytes=way.min_bytes // len(parts))) for way in ways] if parts else []
    with _bar(progress) as bar, adapter.many_compilations():
        task = bar.add_task("gradients", total=(len(whole) + len(parts)) * len(ways) + 1)
        with adapter.graph_breaks() as raw:
            floor = _floor(subject, exact, whole[0])
        breaks = graph_breaks(raw)
        if not exact.graphs:
            raise FxApproxError(nothing_captured(model, whole[0].args, breaks))
        bar.advance(task)
        notes = [*_run(whole, exact, coded, bar, task)]
        notes += _run(parts, halves[0], halves[1:], bar, task) if parts else []
        found = [_causes(subject, way, whole[0], bar) if causes else () for way in coded]
    pairs = halves[1:] if parts else coded if len(whole) > 1 else [None] * len(coded)
    settings = tuple(
        BitsAudit(number, *_errors(way, pair), why, way.report.saved_bytes)
        for number, way, pair, why in zip(bits, coded, pairs, found, strict=True)
    )
    notes += _notes(subject, settings, floor, len(whole) + len(parts), coded)
    if parts and any(_stored(way) != _stored(half) for way, half in zip(coded, halves[1:], strict=True)):
        notes.append("parts of the batch are stored otherwise than the whole: bias and noise are those of other plans")
    return Audit(
        settings,
        exact.report.baseline_bytes,
        exact.report.saved_bytes,
        floor,
        len(whole),
        len(parts),
        tuple(notes),
        breaks,
    )


def _settings(bits: Sequence[int | str | None], options: dict[str, Any]) -> list[Options]:
    """Exact mode, and one for each number of bits."""
    for name in CHOSEN:
        if options.get(name) is not None:
            raise OptionError(f"audit compares numbers of bits, and {name}= chooses them: leave it out")
    if isinstance(bits, (str, int)) or not bits or len({*bits}) < len(bits):
        raise OptionError(f"bits={bits!r}: expected different numbers of bits, such as (8, 4, 2)")
    coded = [Options.parse({"lowering": "eager", **options, "bits": number}) for number in bits]
    return [Options(bits=None, lowering=coded[0].lowering, min_bytes=coded[0].min_bytes), *coded]


class _Subject:
    """The model with its loss, and its parameters."""

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


class _Way:
    """One way to store, its report, and its errors so far: a tally for each parameter."""

    def __init__(self, subject: _Subject, options: Options) -> None:
        options.check_patterns(subject.model)
        self.subject, self.backend, self.graphs = subject, Backend(options), 0
        self._run = torch.compile(fresh(subject.step), backend=self.backend, dynamic=False)
        self.tallies = [Tally() for _ in subject.names]

    def gradients(self, batch: Batch, index: int) -> tuple[Tensor, list[Tensor]]:
        """The loss and the gradients of one batch, stored this way."""
        found = self.subject.gradients(self._run, batch, index)
        self.graphs = self.graphs or len(self.backend.reports)
        return found

    @property
    def report(self) -> Report:
        """Of the first batch."""
        return merge(self.backend.reports[: self.graphs])


def _run(batches: Sequence[Batch], exact: _Way, coded: Sequence[_Way], bar: Progress, task: TaskID) -> Iterator[str]:
    """Adds up the errors of each way over these batches; gives what to note."""
    strayed = set()
    for index, batch in enumerate(batches):
        loss, gradients = exact.gradients(batch, index)
        bar.advance(task)
        for way in coded:
            own, found = way.gradients(batch, index)
            for tally, mine, other in zip(way.tallies, found, gradients, strict=True):
                tally.add(mine, other)
            if not torch.allclose(own, loss, rtol=1e-4):
                strayed.add(way.backend.options.bits)
            bar.advance(task)
    for bits in strayed:
        yield f"in {bits} bits the loss was another one: forward drew other random numbers, and errors contain that"


def _floor(subject: _Subject, exact: _Way, batch: Batch) -> float | None:
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


def _stored(way: _Way) -> list[set[tuple[str, Codec]]]:
    return [{(entry.value, entry.codec) for entry in graph} for graph in way.report.plan.graphs]


def _errors(way: _Way, pair: _Way | None) -> tuple[GradientError, tuple[ParameterError, ...]]:
    """In all and of each parameter; ``pair`` is what bias and noise are told apart by."""
    subject, tallies = way.subject, way.tallies
    parts = [[tally] for tally in pair.tallies] if pair is not None else [[] for _ in tallies]
    each = tuple(
        ParameterError(name, parameter.numel(), math.sqrt(tally.exact / tally.count), total_error([tally], part))
        for name, parameter, tally, part in zip(subject.names, subject.parameters, tallies, parts, strict=True)
    )
    return total_error(tallies, [tally for part in parts for tally in part]), each


def _causes(subject: _Subject, way: _Way, batch: Batch, bar: Progress) -> tuple[Cause, ...]:
    """What each stored value does, worst first."""
    options = replace(way.backend.options, lowering="eager", checkpoint=None)
    prober = Prober(options, as_stored, bar)
    subject.gradients(torch.compile(fresh(subject.step), backend=prober, dynamic=False), batch, 0)
    found = []
    reports = way.report.graphs or (way.report,)
    for report, errors in zip(reports, prober.sensitivities(), strict=False):
        decisions = {decision.value: decision for decision in report.decisions}
        for name, at in errors.items():
            ((bits, squared),) = at.items()
            found.append((decisions[name], bits, squared))
    total = sum(squared for _, _, squared in found) or 1.0
    made = [Cause(d.value, d.module, d.source, d.storage, bits, math.sqrt(e), e / total) for d, bits, e in found]
    return tuple(sorted(made, key=lambda cause: -cause.error))


def _notes(
    subject: _Subject, settings: Sequence[BitsAudit], floor: float | None, batches: int, coded: Sequence[_Way]
) -> Iterator[str]:
    """What limits the numbers."""
    if all(setting.total.error is None for setting in settings):
        yield "the exact gradient is zero or not finite: no error can be told"
    still = [p.name for p in settings[0].parameters if p.norm == 0]
    if still and settings[0].total.error is not None:
        more = f" and {len(still) - 3} more" if len(still) > 3 else ""
        yield f"no gradient, or one of zero: {', '.join(still[:3])}{more}"
    if floor is None:
        yield "the model draws random numbers, which torch.compile draws in another order: exact mode's own rounding"\
            " is not told; every number of bits saw the same ones"  # fmt: skip
    if not subject.model.training:
        yield "the model is in evaluation mode: dropout and batch statistics are not those of training"
    if batches == 1:
        yield "one batch: what of the errors averages out takes several, or one that can be split"
    yield from (f"{way.backend.options.bits} bits: {way.report.fallback}" for way in coded if way.report.fallback)


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    console = Console(stderr=True)
    with Progress(disable=not (shown and console.is_terminal), transient=True, console=console) as bar:
        yield bar


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
