"""allocate: bits for each stored value under an average."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fxapprox.codecs import Exact, Group
from fxapprox.codecs.choose import FEWEST
from fxapprox.files.sensitivity import Sensitivities
from fxapprox.ir.records import Plan
from fxapprox.options import Options
from fxapprox.passes.allocate import Choice, allocate, choose
from fxapprox.passes.classify import classify
from fxapprox.passes.plan import plan
from fxapprox.report.accounting import report_of
from tests.passes.graphs import joint_of, traced
from tools.zoo.models import Case, demo_resnet, gpt2, unet
from tools.zoo.training import relative

W = torch.randn(64, 64, requires_grad=True)
NARROW = torch.randn(64, 8, requires_grad=True)


def layers(x: torch.Tensor) -> torch.Tensor:
    """Smooth and linear values of several sizes."""
    return (torch.tanh(F.gelu(x @ W) @ W) @ W * (x @ W)).sum()


def allocated(average: float, **options: object) -> tuple[Plan, Plan]:
    """(uniform plan, allocated plan)."""
    activations = classify(joint_of(layers, torch.randn(64, 64, requires_grad=True)), min_bytes=0)
    given = Options.parse({"bits": "auto", "average_bits": average, "min_bytes": 0, **options})
    uniform = plan(activations, given)
    return uniform, allocate(uniform, activations, given, {})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.floats(0, 1), st.floats(0.01, 0.5), st.floats(0.01, 0.5)),
        min_size=1, max_size=5,
    ),
    st.floats(2, 8),
)  # fmt: skip
def test_the_choice_is_close_to_the_best_and_keeps_the_average(
    drawn: list[tuple[int, float, float, float]], average: float
) -> None:
    """Errors fall with bits. Greedy on a hull falls short of the best by one step at most."""
    choices = [Choice(f"v{i}", n, {2: e, 4: e * a, 8: e * a * b}) for i, (n, e, a, b) in enumerate(drawn)]
    bits = choose(choices, average)
    budget = average * sum(c.elements for c in choices)
    assert sum(bits[c.name] * c.elements for c in choices) <= budget + 1e-6
    found = sum(c.errors[bits[c.name]] for c in choices)
    fits = (
        pair for pair in itertools.product((2, 4, 8), repeat=len(choices))
        if sum(b * c.elements for b, c in zip(pair, choices, strict=True)) <= budget + 1e-6
    )  # fmt: skip
    best = min(sum(c.errors[b] for b, c in zip(pair, choices, strict=True)) for pair in fits)
    assert found <= best + max(c.errors[2] for c in choices) + 1e-9


def test_more_bits_are_never_worse() -> None:
    choices = [Choice("a", 10, {2: 1.0, 4: 0.1, 8: 0.001}), Choice("b", 40, {2: 0.3, 4: 0.05, 8: 0.0001})]
    errors = []
    for average in (2, 2.5, 3, 4, 5, 6, 7, 8):
        bits = choose(choices, average)
        errors.append(sum(c.errors[bits[c.name]] for c in choices))
    assert errors == sorted(errors, reverse=True)
    assert choose(choices, 8) == {"a": 8, "b": 8}
    assert choose(choices, 2) == {"a": 2, "b": 2}


def test_an_error_that_does_not_fall_buys_no_bits() -> None:
    assert choose([Choice("a", 1, {2: 0.1, 4: 0.1, 8: 0.2})], 8) == {"a": 2}


def test_classes_keep_what_they_need_and_the_same_values_are_stored() -> None:
    for average in (2, 4, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            uniform, chosen = allocated(average)
        assert chosen.saved_names == uniform.saved_names
        for entry in chosen.stored:
            assert entry.codec.bits is None or entry.codec.bits >= FEWEST.get(entry.kind, 0)


def test_an_average_out_of_reach_is_said() -> None:
    with pytest.warns(UserWarning, match=r"average_bits=2 cannot be had.*bits an element"):
        allocated(2)


def test_above_eight_bits_some_values_are_exact() -> None:
    before: set[str] = set()
    for average in (8, 12, 20, 32):
        _, chosen = allocated(average)
        exact = {entry.name for entry in chosen.stored if "average" in entry.reason}
        assert all(isinstance(entry.codec, Exact) for entry in chosen.stored if entry.name in exact)
        assert before <= exact
        before = exact
    assert all(isinstance(entry.codec, Exact) for entry in chosen.stored)


@pytest.mark.parametrize("model", [demo_resnet, gpt2, unet])
def test_exact_values_among_codes(model: Callable[..., Case]) -> None:
    """Forward is untouched, no decision is lost with the code that carried it, and bytes and errors are in between."""
    case = model()
    call = traced(case.model, *case.args)
    exact = call.step(call.split(bits=None))
    before = (0.0, float("inf"))
    for options in ({"bits": "auto", "average_bits": 20}, {"bits": "auto", "average_bits": 12}, {"bits": 8}):
        halves = call.split(**options)
        found = call.step(halves)
        assert all(map(torch.equal, found.outputs, exact.outputs))
        assert report_of(halves, lowering="eager").saved_bytes == found.stored
        now = (relative(found.gradient, exact.gradient), found.stored)
        assert before[0] < now[0] < 0.05
        assert before[1] > now[1]
        before = now


def test_a_policy_has_the_last_word() -> None:
    _, chosen = allocated(8, policy=lambda value: Group(2))
    assert {entry.codec.bits for entry in chosen.stored if isinstance(entry.codec, Group)} == {2}


def test_foreign_sensitivities_are_said() -> None:
    with pytest.warns(UserWarning, match="measured on another model"):
        allocated(8, sensitivities=Sensitivities(({"nobody": {8: 0.1}},)))


def test_sensitivities_without_some_number_of_bits_are_foreign() -> None:
    uniform, chosen = allocated(8)
    names = [entry.name for entry in uniform.stored]
    with pytest.warns(UserWarning, match="measured on another model"):
        _, again = allocated(8, sensitivities=Sensitivities(({name: {8: 0.1} for name in names},)))
    assert again == chosen
