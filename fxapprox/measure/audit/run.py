"""The error of a model's gradients in each number of bits, measured against exact ones, and where it comes from.

Every batch is run exactly and in each number of bits, from the same random numbers, so that dropout's masks are the
same. Nothing of the model changes: gradients are asked for, not accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fxapprox import torch_adapter as adapter
from fxapprox.bits import OFFERED
from fxapprox.codecs import Codec
from fxapprox.errors import FxApproxError, OptionError
from fxapprox.frontend.tracing import fresh
from fxapprox.measure.audit.advice import percent
from fxapprox.measure.audit.records import BitsAudit, Cause, ParameterError
from fxapprox.measure.audit.result import Audit
from fxapprox.measure.batches import Loss, batches_of, parts_of
from fxapprox.measure.calibrate import Prober, as_stored
from fxapprox.measure.gradient_error import GradientError, total_error
from fxapprox.measure.gradients import Runs, Subject, Way
from fxapprox.options import Options

CHOSEN = ("plan", "memory_budget", "error")  # options that leave no number of bits to try
FAR, APART = 0.1, 3  # a parameter's error is pointed out from there on, and if it is so many times that of all together


def audit(
    model: nn.Module,
    loss_fn: Callable[..., Tensor] | None,
    batch: Any,
    bits: Sequence[int | str | None] = OFFERED,
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
    expectation whatever their variance (``fxapprox.measure.gradient_error.mean_of_pairs``). A single batch is run whole
    for its error, and again in equal parts for bias and noise; a batch normalization takes other statistics in a part.
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
    if isinstance(model, nn.Module) and any(tensor.is_meta for tensor in model.parameters()):
        raise FxApproxError("audit runs training steps, and a model on the meta device has no values; see explain()")
    whole = batches_of(batch, batches, targets, loss)
    parts = parts_of(whole[0], batches) if len(whole) == 1 and min(batches, whole[0].examples) > 1 else []
    runs = Runs(Subject(model, loss, compile_loss, seed), ways, whole, parts)
    with _bar(progress) as bar, adapter.many_compilations():
        task = bar.add_task("gradients", total=runs.steps)
        for _ in runs.run():
            bar.advance(task)
        found = [_causes(runs, way, bar) if causes else () for way in runs.coded]
    return _result(runs, bits, found)


def _result(runs: Runs, bits: Sequence[int | str | None], causes: Sequence[tuple[Cause, ...]]) -> Audit:
    settings = tuple(
        BitsAudit(number, *_errors(way, pair), why, way.report.saved_bytes)
        for number, way, pair, why in zip(bits, runs.coded, runs.pairs or [None] * len(runs.coded), causes, strict=True)
    )
    exact = runs.exact.report
    return Audit(
        settings, exact.baseline_bytes, exact.saved_bytes, runs.floor, len(runs.whole), len(runs.parts),
        tuple(_notes(runs, settings)), runs.breaks,
    )  # fmt: skip


def _settings(bits: Sequence[int | str | None], options: dict[str, Any]) -> list[Options]:
    """Exact mode, and one for each number of bits."""
    for name in CHOSEN:
        if options.get(name) is not None:
            raise OptionError(f"audit compares numbers of bits, and {name}= chooses them: leave it out")
    if isinstance(bits, (str, int)) or not bits or len({*bits}) < len(bits):
        raise OptionError(f"bits={bits!r}: expected different numbers of bits, such as (8, 4, 2)")
    coded = [Options.parse({"lowering": "eager", **options, "bits": number}) for number in bits]
    return [Options(bits=None, lowering=coded[0].lowering, min_bytes=coded[0].min_bytes), *coded]


def _stored(way: Way) -> list[set[tuple[str, Codec]]]:
    return [{(entry.value, entry.codec) for entry in graph} for graph in way.report.plan.graphs]


def _errors(way: Way, pair: Way | None) -> tuple[GradientError, tuple[ParameterError, ...]]:
    """In all and of each parameter; ``pair`` is what bias and noise are told apart by."""
    subject, tallies = way.subject, way.tallies
    parts = [[tally] for tally in pair.tallies] if pair is not None else [[] for _ in tallies]
    each = tuple(
        ParameterError(name, parameter.numel(), math.sqrt(tally.exact / tally.count), total_error([tally], part))
        for name, parameter, tally, part in zip(subject.names, subject.parameters, tallies, parts, strict=True)
    )
    return total_error(tallies, [tally for part in parts for tally in part]), each


def _causes(runs: Runs, way: Way, bar: Progress) -> tuple[Cause, ...]:
    """What each stored value does, worst first."""
    prober = Prober(replace(way.options, lowering="eager", checkpoint=None), as_stored, bar)
    probing = torch.compile(fresh(runs.subject.step), backend=prober, dynamic=False)
    runs.subject.gradients(probing, runs.whole[0], 0)
    found = []
    for report, errors in zip(way.report.distinct, prober.sensitivities(), strict=False):
        decisions = {decision.value: decision for decision in report.decisions}
        for name, at in errors.items():
            ((bits, squared),) = at.items()
            found.append((decisions[name], bits, squared))
    total = sum(squared for _, _, squared in found) or 1.0
    made = [Cause(d.value, d.module, d.source, d.storage, bits, math.sqrt(e), e / total) for d, bits, e in found]
    return tuple(sorted(made, key=lambda cause: -cause.error))


def _notes(runs: Runs, settings: Sequence[BitsAudit]) -> Iterator[str]:
    """What limits the numbers."""
    for bits in runs.strayed:
        yield f"in {bits} bits the loss was another one: forward drew other random numbers, and errors contain that"
    if all(setting.total.error is None for setting in settings):
        yield "the exact gradient is zero or not finite: no error can be told"
    elif still := [p.name for p in settings[0].parameters if p.norm == 0]:
        more = f" and {len(still) - 3} more" if len(still) > 3 else ""
        yield f"no gradient, or one of zero: {', '.join(still[:3])}{more}"
    for setting in settings:
        yield from _far_off(setting)
    if runs.floor is None:
        yield "the model draws random numbers, which torch.compile draws in another order: exact mode's own rounding"\
            " is not told; every number of bits saw the same ones"  # fmt: skip
    if not runs.subject.model.training:
        yield "the model is in evaluation mode: dropout and batch statistics are not those of training"
    if not runs.pairs:
        yield "one batch: what of the errors averages out takes several, or one that can be split"
    if runs.parts and any(_stored(way) != _stored(pair) for way, pair in zip(runs.coded, runs.pairs, strict=True)):
        yield "parts of the batch are stored otherwise than the whole: bias and noise are those of other plans"
    yield from (f"{way.options.bits} bits: {way.report.fallback}" for way in runs.coded if way.report.fallback)


def _far_off(setting: BitsAudit) -> Iterator[str]:
    """A parameter that is far off although all together look fine."""
    worst, total = setting.worst, setting.total.error
    if worst is not None and total is not None and (worst.error.error or 0.0) > max(FAR, APART * total):
        yield (
            f"in {setting.label} the gradient of {worst.name} is off by {percent(worst.error.error or 0.0)}, all"
            f" together by {percent(total)}: an optimizer that rescales each parameter takes the former in full"
        )


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    console = Console(stderr=True)
    with Progress(disable=not (shown and console.is_terminal), transient=True, console=console) as bar:
        yield bar
