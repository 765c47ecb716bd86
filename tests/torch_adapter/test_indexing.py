"""Answers about indices are Inductor's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._inductor import sizevars
from torch._inductor.codegen import cpp
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from fxapprox.torch_adapter.speedups import indexing

X, Y, Z = VARIABLES = sympy.symbols("d0 d1 d2", integer=True, nonnegative=True)
SIZES = st.sampled_from((1, 2, 3, 4, 8, 16, 32))


@st.composite
def indices(draw: st.DrawFn) -> Any:
    """A place in memory, split into the places along some sizes; those added up, each times some number."""
    flat = sum(draw(SIZES) * var for var in draw(st.sets(st.sampled_from(VARIABLES), min_size=1)))
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    terms = []
    for depth, size in enumerate(sizes):
        inner = math.prod(sizes[depth + 1 :])
        terms.append((FloorDiv(flat, inner) if depth == 0 else ModularIndexing(flat, inner, size), inner))
    if draw(st.booleans()):  # a view that only splits
        return sum(inner * term for term, inner in terms) + draw(SIZES) * draw(st.sampled_from((0, *VARIABLES)))
    return sum(draw(SIZES) * term for term, _ in draw(st.permutations(terms)))


@given(indices())
@example(ModularIndexing(X, 1, 32) + 32 * ModularIndexing(X, 32, 4))
@example(ModularIndexing(X, 1, 32) + 32 * FloorDiv(X, 32) + 5)
@example(3 * ModularIndexing(X + 8 * Y, 4, 8) + 24 * FloorDiv(X + 8 * Y, 32))
@example(ModularIndexing(X, 1, 4) * ModularIndexing(Y, 1, 4) + X)
@settings(max_examples=60, deadline=None)
def test_dimensions_are_joined_as_inductor_does(index: Any) -> None:
    assert indexing.join_dimensions(index) == sizevars.join_dimensions(index)


@given(indices(), st.sampled_from(VARIABLES), st.sampled_from((None, 8, 16)))
@example(64 * X + Y, Y, 8)
@example(64 * (X + Y), Y, 8)
@example(FloorDiv(Y, 16) + ModularIndexing(Y, 1, 16), Y, 8)
@example(FloorDiv(Y, 4), Y, 8)
@example(FloorDiv(8 * Y, 64), Y, 8)
@settings(max_examples=60, deadline=None)
def test_strides_are_those_that_inductor_finds(index: Any, var: Any, length: int | None) -> None:
    found, inductors = (
        of(sympy.sympify(index), var, length) for of in (indexing.stride_at_vec_range, cpp.stride_at_vec_range)
    )
    assert found.is_number == inductors.is_number
    assert sympy.expand(found - inductors) == 0 or not found.is_number


@pytest.mark.parametrize("index", [X, X + 2 * Y, sympy.Integer(4), FloorDiv(X, 2)])
def test_an_index_without_remainders_stays(index: Any) -> None:
    assert indexing.join_dimensions(index) == index
