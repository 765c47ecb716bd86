"""Chooses how few bits each stored value may have, so that no gradient is further off than a bound allows.

Squared errors of different values add up (they are nearly independent: ActNN, Chen et al. 2021, equation 4), for each
gradient by itself. Every value starts with the fewest bits that its class allows. While some sum is above its limit,
the bits are bought that take the most off what is too much, for each byte; at the end those are given back that turn
out not to be needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEGLIGIBLE = 1e-5  # of the whole gradient's norm


@dataclass(frozen=True, slots=True)
class Choice:
    """A stored value whose bits can be chosen.

    Attributes:
        name: of the value.
        nbytes: {bits: bytes that it takes then}.
        errors: {bits: what it adds to the squared relative error of each gradient}.
    """

    name: str
    nbytes: Mapping[int, int]
    errors: Mapping[int, NDArray[np.float64]]


def fewest_bits(choices: Sequence[Choice], limits: NDArray[np.float64]) -> dict[str, int]:
    """{value: bits}: few bytes, with all sums of errors within the limits; the most bits where that cannot be.

    Args:
        choices: each with at least one number of bits.
        limits: of the squared relative error of each gradient.
    """
    steps = {choice.name: sorted(choice.errors) for choice in choices}
    at = {choice.name: 0 for choice in choices}
    total = sum((choice.errors[steps[choice.name][0]] for choice in choices), start=np.zeros_like(limits))
    while (excess := np.maximum(total / limits - 1, 0)).any():
        best, gain, further = None, 0.0, 0
        for choice in choices:
            levels, now = steps[choice.name], at[choice.name]
            for then in range(now + 1, len(levels)):
                saved = (choice.errors[levels[now]] - choice.errors[levels[then]]) / limits
                price = max(choice.nbytes[levels[then]] - choice.nbytes[levels[now]], 1)
                worth = float(np.minimum(saved, excess).sum()) / price
                if worth > gain:
                    best, gain, further = choice, worth, then
        if best is None:
            break  # what is left comes from elsewhere
        levels = steps[best.name]
        total = total - best.errors[levels[at[best.name]]] + best.errors[levels[further]]
        at[best.name] = further
    for choice in sorted(choices, key=lambda c: -c.nbytes[steps[c.name][at[c.name]]]):
        levels = steps[choice.name]
        for fewer in range(at[choice.name]):
            less = total - choice.errors[levels[at[choice.name]]] + choice.errors[levels[fewer]]
            if (less <= limits).all():
                total, at[choice.name] = less, fewer
                break
    return {name: steps[name][now] for name, now in at.items()}


def counted(norms: Sequence[float]) -> list[int]:
    """Which parameters' errors count, by the norms of their exact gradients, given in any unit.

    Below ``NEGLIGIBLE`` of the norm of all together a gradient is mostly rounding: that of a bias before a
    normalization is zero.
    """
    least = NEGLIGIBLE * math.sqrt(sum(norm * norm for norm in norms))
    return [i for i, norm in enumerate(norms) if norm > 0 and norm >= least]
