"""fewest_bits: as few bytes as limits on several gradients allow, against every choice there is."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from fxapprox.planning.bound import Choice, fewest_bits

DISTORTION = {2: 0.13, 4: 0.01, 8: 4e-5, 32: 0.0}


def choice(name: str, elements: int, *errors: float) -> Choice:
    """A value with these errors, relative to its code's distortion, in each gradient."""
    return Choice(
        name, {bits: elements * bits // 8 for bits in DISTORTION},
        {bits: np.array(errors) * distortion for bits, distortion in DISTORTION.items()},
    )  # fmt: skip


def spent(choices: list[Choice], bits: dict[str, int]) -> int:
    return sum(each.nbytes[bits[each.name]] for each in choices)


def errors(choices: list[Choice], bits: dict[str, int]) -> np.ndarray:
    return sum(each.errors[bits[each.name]] for each in choices)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(20))
def test_limits_are_kept_for_few_bytes(seed: int) -> None:
    draw = random.Random(seed)
    choices = [choice(f"v{i}", draw.choice((64, 256, 1024)), *(draw.random() ** 4 for _ in range(3))) for i in range(5)]
    limits = np.array([10 ** draw.uniform(-6, -1) for _ in range(3)])
    bits = fewest_bits(choices, limits)
    assert (errors(choices, bits) <= limits).all()
    every = (dict(zip([c.name for c in choices], at, strict=True)) for at in itertools.product(DISTORTION, repeat=5))
    least = min(spent(choices, each) for each in every if (errors(choices, each) <= limits).all())
    assert spent(choices, bits) <= 1.35 * least


def test_what_cannot_be_kept_gets_the_most_bits() -> None:
    fixed = Choice("fixed", {8: 64}, {8: np.array([1.0])})
    assert fewest_bits([fixed, choice("other", 64, 1.0)], np.array([0.1])) == {"fixed": 8, "other": 32}


def test_nothing_is_bought_without_need() -> None:
    assert fewest_bits([choice("a", 64, 1.0), choice("b", 64, 0.0)], np.array([1.0])) == {"a": 2, "b": 2}
    assert fewest_bits([], np.array([1.0])) == {}
