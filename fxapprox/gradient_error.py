"""How far gradients are from the exact ones, and how much of that averages out over batches.

A tally adds up, over batches i, what is needed of the errors e_i = g'_i - g_i of one gradient: no batch's gradients
are kept. The mean error is the bias; its square is estimated without a bias of its own (see ``Tally.squared_bias``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
        added_variance: by how much the noise raises the variance that gradients have from batch to batch anyway.
    """

    error: float | None
    cosine: float | None
    bias: float | None = None
    noise: float | None = None
    added_variance: float | None = None


class Tally:
    """Sums over batches of one parameter's exact and approximate gradients."""

    def __init__(self) -> None:
        self.count = 0
        self.error = self.found = self.exact = self.product = 0.0  # squared norms, and the inner product
        self._errors: Tensor | None = None
        self._gradients: Tensor | None = None

    def add(self, found: Tensor, exact: Tensor) -> None:
        """One batch's gradients, of any dtype and shape."""
        found, exact = found.detach().float(), exact.detach().float()
        error = found - exact
        self.count += 1
        self.error += _squared(error)
        self.found += _squared(found)
        self.exact += _squared(exact)
        self.product += float(torch.sum(found * exact, dtype=torch.float64))
        self._errors = error if self._errors is None else self._errors + error
        self._gradients = exact.clone() if self._gradients is None else self._gradients + exact

    @property
    def squared_bias(self) -> float:
        """An unbiased estimate of ||E e||^2: the mean of <e_i, e_j> over pairs of different batches.

        With k batches it is (||sum e||^2 - sum ||e_i||^2) / (k (k - 1)). The plain ||mean e||^2 would be too large by
        the variance of the errors over k. Needs two batches; can be below zero.
        """
        return _unbiased(self._errors, self.error, self.count)

    @property
    def squared_signal(self) -> float:
        """The same estimate for ||E g||^2 of the exact gradient."""
        return _unbiased(self._gradients, self.exact, self.count)


def total_error(whole: Iterable[Tally], parts: Iterable[Tally] = ()) -> GradientError:
    """The error of one or more parameters together.

    Args:
        whole: tallies of the batches that errors are wanted of, one for each parameter.
        parts: tallies of the batches, two at least, that bias and noise are told apart by; none: they are not.
    """
    whole, parts = list(whole), list(parts)
    error, exact, count = (sum(getattr(t, name) for t in whole) for name in ("error", "exact", "count"))
    found, product = sum(t.found for t in whole), sum(t.product for t in whole)
    if not count or not exact or not math.isfinite(exact):
        return GradientError(None, None)
    if not math.isfinite(error):
        return GradientError(math.inf, None)
    relative = math.sqrt(error / exact)
    cosine = product / math.sqrt(found * exact) if found else 0.0
    if not parts or min(t.count for t in parts) < 2:
        return GradientError(relative, cosine)
    return GradientError(relative, cosine, *_split(parts, error / whole[0].count, exact / whole[0].count))


def _split(parts: list[Tally], error: float, exact: float) -> tuple[float, float | None, float | None]:
    """(bias, noise, added variance) for mean squared error and size of the whole batches."""
    count = parts[0].count
    squared = max(0.0, sum(t.squared_bias for t in parts))
    noise = 1 - min(1.0, squared / error) if error else None
    variance = sum(t.exact for t in parts) / count - sum(t.squared_signal for t in parts)
    spread = sum(t.error for t in parts) / count - squared
    return math.sqrt(squared / exact), noise, max(0.0, spread) / variance if variance > 0 else None


def _unbiased(total: Tensor | None, squares: float, count: int) -> float:
    assert total is not None
    return (_squared(total) - squares) / (count * (count - 1))


def _squared(x: Tensor) -> float:
    return float(torch.sum(x * x, dtype=torch.float64))
