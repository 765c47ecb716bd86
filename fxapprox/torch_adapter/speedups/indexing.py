# pyright: reportPrivateImportUsage=false
"""Patches ``cpp.stride_at_vec_range`` and ``sizevars.join_dimensions``: answers without sympy's general means.

Codes of images are read through views, so an index is a sum of many terms with ``FloorDiv`` and ``ModularIndexing``.
Inductor lets sympy simplify such a sum, or match it against patterns, for tens of milliseconds each time; the answers
hang on single terms.

Saves: 24 of 59 s that a U-Net at 4 bits takes to compile (docs/performance.md). Torch: all that are known.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import sympy
from torch._inductor.utils import sympy_subs
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from fxapprox.torch_adapter.joint import Half

try:
    from torch._inductor.sizevars import simplify_index_in_vec_range
except ImportError:  # before torch 2.13
    from torch._inductor.codegen.cpp import simplify_index_in_vec_range  # pyright: ignore[reportAttributeAccessIssue]

REMEMBERED = 4096  # answers of each kind: more than a network asks for


def patches(half: Half) -> Iterator[AbstractContextManager[object]]:
    """Both questions."""
    from torch._inductor import sizevars
    from torch._inductor.codegen import cpp

    yield patch.object(cpp, "stride_at_vec_range", stride_at_vec_range)
    yield patch.object(sizevars, "join_dimensions", join_dimensions)


def stride_at_vec_range(index: sympy.Expr, var: sympy.Symbol, vec_length: int | None = None) -> sympy.Expr:
    """How far an index moves when a loop's variable does by one, within a vector: as far as all of its terms do.

    Args:
        vec_length: elements of a vector, which begins at a multiple of as many.
    """
    return sympy.Add(*(_stride_of_term(term, var, vec_length) for term in sympy.Add.make_args(index)))


@functools.lru_cache(REMEMBERED)
def _stride_of_term(term: sympy.Expr, var: sympy.Symbol, vec_length: int | None) -> sympy.Expr:
    if not term.has(var):
        return sympy.S.Zero
    multiple = term / var
    if not multiple.has(var):
        return multiple
    if vec_length:
        term = simplify_index_in_vec_range(term, var, vec_length)
    return sympy.expand(sympy_subs(term, {var: var + 1}) - term)


@functools.lru_cache(REMEMBERED)
def join_dimensions(index: sympy.Expr) -> sympy.Expr:
    """An index with one term for what a view has split: ``i % 32 + 32 * (i // 32)`` is ``i``.

    Two terms are joined at a time, the first of which is the remainder of a division: with the quotient's remainder if
    there is one, else with the quotient.
    """
    if not isinstance(index, sympy.Add):
        return index
    remainders = [(term, *scaled) for term in index.args if (scaled := _scaled_remainder(term)) is not None]
    for term, scale, (base, divisor, modulus) in remainders:
        for other, other_scale, (*_, other_modulus) in remainders:
            if other == term or other_scale != scale * modulus:
                continue
            if other == other_scale * ModularIndexing(base, divisor * modulus, other_modulus):
                joined = scale * ModularIndexing(base, divisor, modulus * other_modulus)
                return join_dimensions(index - term - other + joined)
    for term, scale, (base, divisor, modulus) in remainders:
        quotient = scale * modulus * FloorDiv(base, divisor * modulus)
        if quotient in index.args:
            return join_dimensions(index - term - quotient + scale * FloorDiv(base, divisor))
    return index


def _scaled_remainder(term: sympy.Expr) -> tuple[sympy.Expr, tuple[Any, ...]] | None:
    """A term's (scale, (base, divisor, modulus)) if it is a multiple of one ``ModularIndexing``."""
    factors = sympy.Mul.make_args(term)
    remainders = [factor for factor in factors if isinstance(factor, ModularIndexing)]
    if len(remainders) != 1:
        return None
    (remainder,) = remainders
    return term / remainder, remainder.args
