"""Paired differences of training runs: intervals, equivalence by two one-sided tests, Holm's correction.

The margin of equivalence is fixed here, before anything is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import linregress, t

SHARE_OF_DEVIATION = 0.25  # of the reference's final values over seeds
LEAST_LOSS = 0.005  # nats
LEAST_ACCURACY = 0.002  # 0.2 points
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """What pairs say of a difference; p values and the interval are nan with fewer than two pairs.

    Attributes:
        pairs: how many.
        mean: of the differences.
        low, high: of its 95% interval.
        p_zero: of a difference as far from 0, if there were none (two-sided t test).
        p_apart: of a difference as near to 0, if the true one were at the margin: below 0.05, they are equivalent.
    """

    pairs: int
    mean: float
    low: float
    high: float
    p_zero: float
    p_apart: float


def margin(reference: Sequence[float], least: float) -> float:
    """Up to where a difference does not matter."""
    return max(SHARE_OF_DEVIATION * stdev(reference), least) if len(reference) > 1 else least


def difference(values: Sequence[float], within: float = math.nan) -> Difference:
    """Mean, interval and tests of paired differences.

    Args:
        values: the differences; one that is not finite makes everything nan.
        within: the margin of equivalence.
    """
    count, mean = len(values), fmean(values) if values else math.nan
    if count < 2 or not all(map(math.isfinite, values)):
        return Difference(count, mean, *[math.nan] * 4)
    error = stdev(values) / math.sqrt(count)
    if error == 0:
        return Difference(count, mean, mean, mean, float(mean == 0), float(not abs(mean) < within))
    half = float(t.ppf(1 - LEVEL / 2, count - 1)) * error
    p_zero = 2 * float(t.sf(abs(mean) / error, count - 1))
    p_apart = float(t.sf((within - abs(mean)) / error, count - 1))  # the nearer margin's test has the larger p
    return Difference(count, mean, mean - half, mean + half, p_zero, p_apart)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979), in the given order; nan stays nan, and is not counted."""
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    adjusted, largest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def drift(steps: Sequence[int], gaps: Sequence[float]) -> float:
    """How far a gap moves over the second half of training, by a straight line through its points there."""
    late = [(step, gap) for step, gap in zip(steps, gaps, strict=True) if 2 * step >= steps[-1]]
    if len(late) < 2:
        return math.nan
    return float(linregress(*zip(*late, strict=True)).slope) * (late[-1][0] - late[0][0])  # type: ignore[attr-defined]
