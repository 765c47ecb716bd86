"""The largest batch that fits into an amount of memory, solved for without running the model.

The model is traced with a symbolic batch, which makes the predicted peak of a step an expression of the batch. Where a
graph does not serve a batch (torch's kernels for convolutions on the CPU change at 16), the model is traced anew at
that batch; where it fixes its batch while it is traced, it is traced at each batch that the search looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from fxapprox import torch_adapter as adapter
from fxapprox.amounts import parse_bytes, size_text
from fxapprox.errors import DoesNotFit, FxApproxError, ModelError, OptionError
from fxapprox.frontend.explain import explain
from fxapprox.options import OptionKeywords, Options
from fxapprox.report.result import Report

FIRST = 16  # the batch that is traced first: CPU convolutions have one graph below 16, another from there on


@dataclass(frozen=True, slots=True)
class BatchFit:
    """The largest batch that fits.

    Attributes:
        batch: its number of examples.
        peak_bytes: the most memory in use at once during a training step with it: what is alive anyway (parameters,
            buffers, inputs, the optimizer's state where it was asked for), and on top of it ``report.peak_bytes``,
            gradients included. What the allocator rounds up or keeps for itself is not in it.
        next_peak_bytes: the same with one example more.
        alive_bytes: what of ``peak_bytes`` is alive anyway.
        memory: the bytes that were to be filled.
        traced: the batches that the model was traced at.
        fixed_because: why the batch could not be symbolic, or "".
    """

    batch: int
    peak_bytes: int
    next_peak_bytes: int
    alive_bytes: int
    memory: int
    traced: tuple[int, ...]
    fixed_because: str = ""

    def __str__(self) -> str:
        text = (
            f"batch {self.batch}: {size_text(self.peak_bytes)} of {size_text(self.memory)};"
            f" batch {self.batch + 1} needs {size_text(self.next_peak_bytes)}"
        )
        batches = ", ".join(map(str, self.traced))
        return f"{text}\ntraced at each of {batches}: {self.fixed_because}" if self.fixed_because else text


@dataclass(frozen=True)
class Batch:
    """A model with inputs for one number of examples.

    Attributes:
        model: a module or function of the arguments.
        args: its arguments.
        others: further tensors with a dimension for examples: targets that a loss function closes over.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    others: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """All inputs."""
        return [*adapter.tensors_in(self.args), *self.others]


def max_batch(
    model: Callable[..., Any],
    make_batch: Callable[[int], Any],
    memory: str | int,
    *,
    optimizer_bytes_per_parameter: int = 0,
    **options: Unpack[OptionKeywords],
) -> BatchFit:
    """The largest batch whose training step fits into an amount of memory; the model does not run.

    The plan is the one made for a symbolic batch of 16, with its bytes at other batches. One made for a single batch
    can need a little less where examples are small, because its groups of elements may cross examples.

    Args:
        model: a module or a function, not compiled; its loss is best computed inside, as for ``compile``.
        make_batch: from a number of examples to the model's arguments, a tensor or a tuple; sizes that depend on the
            number have to do so in proportion, or with an offset.
        memory: such as "8GiB", or a number of bytes, for parameters, gradients, inputs and activations.
        optimizer_bytes_per_parameter: of the optimizer's state, for each element of a trained parameter: 4 for
            momentum, 8 for Adam, in float32.
        **options: see :class:`Options`.

    Raises:
        OptionError: an option or the memory is unknown or invalid, or make_batch returns something else.
        DoesNotFit: not even one example fits; the message says what it needs.
        FxApproxError: make_batch raises, or nothing could be traced.
    """
    limit, parsed = parse_bytes(memory), Options.parse(options).require_no_error("max_batch()")
    parsed.check_patterns(model)
    if type(optimizer_bytes_per_parameter) is not int or optimizer_bytes_per_parameter < 0:
        raise OptionError(f"optimizer_bytes_per_parameter={optimizer_bytes_per_parameter!r}: expected 0 or more")
    resident = resident_bytes(model, optimizer_bytes_per_parameter)
    return Needs(lambda batch: Batch(model, _made(make_batch, batch)), options, resident).largest(limit)


class Needs:
    """What a step needs at each batch; graphs are traced as they are asked for.

    Args:
        build: from a number of examples to model and inputs.
        options: for ``explain``.
        resident: bytes that are alive whatever the batch.
    """

    def __init__(self, build: Callable[[int], Batch], options: Mapping[str, Any], resident: int) -> None:
        self._build, self._options, self._resident = build, options, resident
        self._sizes = sizes_of(build(FIRST), build(2 * FIRST))
        self._graphs: list[tuple[int, Report]] = []
        self._fixed_because = ""

    def largest(self, memory: int, *, plain: bool = False) -> BatchFit:
        """The largest batch that fits; ``plain``: for torch.compile as it is."""

        @cache
        def needs(batch: int) -> int:
            alive = self.alive(batch)
            return alive if alive > memory else alive + self.peak(batch, plain=plain)

        batch = last_within(needs, memory)
        if batch == 0:
            needed = self.alive(1) + self.peak(1, plain=plain)
            raise DoesNotFit(
                f"{size_text(memory)} is too little: batch 1 needs {size_text(needed)}, {size_text(self.alive(1))} of"
                " it for parameters, buffers, inputs and the optimizer's state",
                needed,
            )
        following = self.alive(batch + 1) + self.peak(batch + 1, plain=plain)
        traced = tuple(sorted({at for at, _ in self._graphs}))
        return BatchFit(batch, needs(batch), following, self.alive(batch), memory, traced, self._fixed_because)

    def alive(self, batch: int) -> int:
        """Bytes that are alive before and after a step."""
        return self._resident + sum(tensor.nbytes_at(batch) for tensor in self._sizes)

    def peak(self, batch: int, *, plain: bool) -> int:
        """The predicted peak of a step beyond that."""
        for traced_at, report in self._graphs:
            served = self._served(report, traced_at, batch)
            if served is not None:
                return served.baseline_peak_bytes if plain else served.peak_bytes
        self._graphs.append((batch, self._traced(batch)))
        return self.peak(batch, plain=plain)

    def _served(self, report: Report, traced_at: int, batch: int) -> Report | None:
        """The report at a batch; None if its graph does not serve it."""
        if batch == traced_at:
            return report
        moving = {size.at(traced_at): size for tensor in self._sizes for size in tensor.sizes if size.slope}
        if not report.sizes or any(symbol.hint not in moving for symbol in report.sizes):
            return None
        try:
            return report.at({symbol.name: moving[symbol.hint].at(batch) for symbol in report.sizes})
        except OptionError:
            return None

    def _traced(self, batch: int) -> Report:
        """The report of the model traced at a batch, a symbolic one where that works."""
        made = self._build(batch)
        dimensions = [[i for i, size in enumerate(tensor.sizes) if size.slope] for tensor in self._sizes]
        if batch > 1 and not self._fixed_because:
            try:
                with adapter.marked_dynamic(made.tensors, dimensions):
                    report = explain(made.model, *made.args, dynamic=None, **self._options)
            except Exception as error:
                self._fixed_because = f"with a symbolic batch {_first_line(error)}"
            else:
                if not report.sizes:
                    self._fixed_because = "the model fixes its batch when it is traced"
                return report
        try:
            return explain(made.model, *made.args, dynamic=False, **self._options)
        except ModelError as error:
            raise ModelError(
                f"could not be traced at batch {batch}: {error}; is all that belongs to a batch among its inputs?"
            ) from error


def resident_bytes(model: Callable[..., Any], optimizer_bytes_per_parameter: int) -> int:
    """Parameters, buffers, and the optimizer's state."""
    if not isinstance(model, nn.Module):
        return 0  # a function's own tensors cannot be seen
    tensors = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(t.untyped_storage().nbytes() for t in tensors.values()) + optimizer_bytes_per_parameter * trained


@dataclass(frozen=True, slots=True)
class Affine:
    """A size that is ``slope`` times the batch, plus ``offset``."""

    slope: int
    offset: int

    def at(self, batch: int) -> int:
        return self.slope * batch + self.offset


@dataclass(frozen=True, slots=True)
class TensorSizes:
    """The shape of an input as it depends on the batch, and the bytes of an element."""

    sizes: tuple[Affine, ...]
    itemsize: int

    def nbytes_at(self, batch: int) -> int:
        return self.itemsize * math.prod(size.at(batch) for size in self.sizes)


def sizes_of(first: Batch, second: Batch) -> tuple[TensorSizes, ...]:
    """The shapes of all inputs, from those at `FIRST` and at twice as many examples.

    Raises:
        OptionError: no shape depends on the batch, or one does in another way than in proportion with an offset.
    """
    pairs = list(zip(first.tensors, second.tensors, strict=False))
    if len(first.tensors) != len(second.tensors) or any(a.dim() != b.dim() for a, b in pairs):
        raise OptionError(f"the batches of {FIRST} and {2 * FIRST} examples differ in more than sizes")
    found = tuple(
        TensorSizes(tuple(_affine(m, n) for m, n in zip(a.shape, b.shape, strict=True)), a.itemsize) for a, b in pairs
    )
    if not any(size.slope for tensor in found for size in tensor.sizes):
        raise OptionError(f"the batches of {FIRST} and {2 * FIRST} examples have the same sizes: nothing to solve for")
    return found


def _affine(at_first: int, at_second: int) -> Affine:
    slope, rest = divmod(at_second - at_first, FIRST)
    if rest:
        raise OptionError(
            f"an input's size is {at_first} with {FIRST} examples and {at_second} with {2 * FIRST}:"
            " that is not in proportion, nor with an offset"
        )
    return Affine(slope, at_first - slope * FIRST)


def last_within(needs: Callable[[int], int], memory: int) -> int:
    """The largest batch that needs at most this much, by doubling from `FIRST` and bisection; 0 if there is none."""
    fits, above = 0, FIRST
    while needs(above) <= memory:
        fits, above = above, 2 * above
    while above - fits > 1:
        middle = (fits + above) // 2
        fits, above = (middle, above) if needs(middle) <= memory else (fits, middle)
    return fits


def _made(make_batch: Callable[[int], Any], batch: int) -> tuple[Any, ...]:
    try:
        made = make_batch(batch)
    except Exception as error:
        raise FxApproxError(f"make_batch({batch}) raised {type(error).__name__}: {error}") from error
    if isinstance(made, Tensor):
        return (made,)
    if not isinstance(made, (tuple, list)) or not adapter.tensors_in(made):
        raise OptionError(
            f"make_batch({batch}) returned {type(made).__name__}: expected a tensor, or a tuple of arguments with one"
        )
    return tuple(made)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
