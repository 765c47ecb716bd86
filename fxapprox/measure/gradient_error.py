"""How far gradients are from the exact ones, and how much of that averages out over batches.

A tally adds up, over batches i, what is needed of the errors e_i = g'_i - g_i of one gradient: no batch's gradients
are kept. The mean error is the bias; its square is estimated without a bias of its own (see ``mean_of_pairs``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GradientError:
    """The error of a gradient; every number is None where it cannot be told.

    Attributes:
        error: sqrt(mean ||g' - g||^2 / mean ||g||^2), over batches; None where the exact gradient is zero or not
            finite, infinite where only the approximate one is not finite.
        cosine: of the angle between g' and g: sum <g', g> / sqrt(sum ||g'||^2 sum ||g||^2).
        bias: the part of ``error`` that stays, however many batches are averaged: ||mean of g' - g||, relative to the
            same size as ``error``. None with one batch. Not below 0, although the estimate of its square can be.
        noise: the share of the squared error that averages out over batches, 0 to 1: 1 - bias^2 / error^2.
        noise_error: the standard error of ``noise``; None with two batches.
        added_variance: by how much the noise raises the variance that gradients have from batch to batch anyway.
    """

    error: float | None
    cosine: float | None
    bias: float | None = None
    noise: float | None = None
    noise_error: float | None = None
    added_variance: float | None = None


class Tally:
    """Sums over batches of one parameter's exact and approximate gradients.

    Attributes:
        count: how many batches there were.
        error, found, exact: sums of the squared norms of error, approximate and exact gradient.
        product: sum of the inner products of approximate and exact gradient.
        error_pairs, exact_pairs: for each batch but the first the inner product of its error (its exact gradient) with
            the sum of those before it. Over all batches that is the sum over pairs of different ones.
    """

    def __init__(self) -> None:
        self.count = 0
        self.error = self.found = self.exact = self.product = 0.0
        self.error_pairs: list[float] = []
        self.exact_pairs: list[float] = []
        self._errors: Tensor | None = None
        self._gradients: Tensor | None = None

    def add(self, found: Tensor, exact: Tensor) -> None:
        """One batch's gradients, of any dtype and shape."""
        found, exact = found.detach().float(), exact.detach().float()
        error = found - exact
        self.count += 1
        self.error += _inner(error, error)
        self.found += _inner(found, found)
        self.exact += _inner(exact, exact)
        self.product += _inner(found, exact)
        if self._errors is None or self._gradients is None:
            self._errors, self._gradients = error, exact.clone()
            return
        self.error_pairs.append(_inner(error, self._errors))
        self.exact_pairs.append(_inner(exact, self._gradients))
        self._errors += error
        self._gradients += exact


def total_error(whole: Sequence[Tally], parts: Sequence[Tally] = ()) -> GradientError:
    """The error of one or more parameters together.

    Args:
        whole: tallies of the batches that errors are wanted of, one for each parameter.
        parts: tallies of the batches, two at least, that bias and noise are told apart by; none: they are not.
    """
    error, exact, found, product = (
        sum(getattr(t, name) for t in whole) for name in ("error", "exact", "found", "product")
    )
    if not exact or not math.isfinite(exact):
        return GradientError(None, None)
    if not math.isfinite(error):
        return GradientError(math.inf, None)
    relative, cosine = math.sqrt(error / exact), product / math.sqrt(found * exact) if found else 0.0
    if not parts or parts[0].count < 2:
        return GradientError(relative, cosine)
    return GradientError(relative, cosine, *_split(parts, error / whole[0].count, exact / whole[0].count))


def _split(
    parts: Sequence[Tally], error: float, exact: float
) -> tuple[float, float | None, float | None, float | None]:
    """Bias, noise, its standard error and the added variance, for this mean squared error and size of whole batches."""
    count = parts[0].count
    squared, uncertain = mean_of_pairs([sum(pairs) for pairs in zip(*(t.error_pairs for t in parts), strict=True)])
    signal, _ = mean_of_pairs([sum(pairs) for pairs in zip(*(t.exact_pairs for t in parts), strict=True)])
    squared = max(0.0, squared)
    variance = sum(t.exact for t in parts) / count - signal
    spread = max(0.0, sum(t.error for t in parts) / count - squared)
    return (
        math.sqrt(squared / exact),
        1 - min(1.0, squared / error) if error else None,
        uncertain / error if error and uncertain is not None else None,
        spread / variance if variance > 0 else None,
    )


def mean_of_pairs(sums: Sequence[float]) -> tuple[float, float | None]:
    """The mean inner product of two different batches' vectors, and its standard error.

    It is an unbiased estimate of ||E e||^2: batches are independent, so E <e_i, e_j> = <E e_i, E e_j>. The plain square
    of the mean, ||mean e||^2, would be too large by the variance of the vectors over their number. Can be below zero.

    Args:
        sums: for each batch but the first the inner product with the sum of the j before it; where the mean is zero
            these are uncorrelated, with variances in proportion to j, which is what the standard error rests on.

    Returns: the standard error is None with two batches.
    """
    pairs = len(sums) * (len(sums) + 1) // 2
    mean = sum(sums) / pairs
    if len(sums) < 2:
        return mean, None
    variance = sum((s - j * mean) ** 2 / j for j, s in enumerate(sums, start=1)) / (len(sums) - 1)
    return mean, math.sqrt(variance / pairs)


def _inner(x: Tensor, y: Tensor) -> float:
    return float(torch.sum(x * y, dtype=torch.float64))
