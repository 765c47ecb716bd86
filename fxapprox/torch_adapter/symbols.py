# pyright: reportPrivateImportUsage=false
"""Symbolic sizes: expressions for the library, and what the user calls them."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch._dynamo import maybe_mark_dynamic
from torch.utils._sympy.numbers import int_oo

from fxapprox.sizes import Size, SizeSymbol
from fxapprox.torch_adapter.tracing import fake_mode_of


def is_symbolic_scalar(node: fx.Node) -> bool:
    """Whether the node is a SymInt, SymFloat or SymBool."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def hint(size: Any) -> int:
    """A size as a number: symbolic sizes by their hint."""
    if isinstance(size, int):
        return size
    value = size.node.hint if size.node.has_hint() else None
    return int(value) if value not in (None, int_oo) else 1


@contextlib.contextmanager
def marked_dynamic(tensors: Sequence[torch.Tensor], dimensions: Sequence[Sequence[int]]) -> Iterator[None]:
    """Has Dynamo take these dimensions of these tensors as symbolic, and as numbers where the code makes it."""
    before = [dict(vars(tensor)) for tensor in tensors]
    try:
        for tensor, dims in zip(tensors, dimensions, strict=True):
            maybe_mark_dynamic(tensor, list(dims))
        yield
    finally:
        for tensor, attributes in zip(tensors, before, strict=True):
            vars(tensor).clear()
            vars(tensor).update(attributes)


def size_symbols(gm: fx.GraphModule) -> list[fx.Node]:
    """The graph's symbolic-size inputs."""
    return [n for n in gm.graph.nodes if n.op == "placeholder" and is_symbolic_scalar(n)]


def expression(size: Any) -> Size:
    """A size as an int, or as an expression of the shape environment's symbols where it is not static."""
    if isinstance(size, int):
        return size
    expr = sympy.sympify(size.node.expr)
    return int(expr) if expr.is_Integer else expr


def dynamic_sizes(gm: fx.GraphModule) -> tuple[SizeSymbol, ...]:
    """The dynamic dimensions that the graph was traced with."""
    env = _shape_env(gm)
    return () if env is None else tuple(_size_symbol(env, symbol) for symbol in env.var_to_range)


def size_conditions(gm: fx.GraphModule) -> tuple[sympy.Basic, ...]:
    """What the sizes have to fulfil for the graph to serve them; the ranges of single symbols are not repeated."""
    env = _shape_env(gm)
    return () if env is None else tuple(guard.expr for guard in env.guards)


@contextlib.contextmanager
def general_sizes(gm: fx.GraphModule) -> Iterator[None]:
    """Decides conditions on the graph's symbolic sizes without a guard, where all sizes decide them alike.

    torch guards on what its algebra cannot decide, such as whether 12 s divides 64 s; and a guard narrows a range that
    the user has marked, which is an error. Where sizes differ, it is the guard that is needed.
    """
    env = _shape_env(gm)
    if env is None:
        yield
        return
    plain = env.evaluate_expr
    decided = functools.cache(functools.partial(_decided, env))

    def evaluate(condition: Any, *args: Any, **kwargs: Any) -> Any:
        found = decided(condition)
        return plain(condition, *args, **kwargs) if found is None else found

    env.evaluate_expr = evaluate
    try:
        yield
    finally:
        del env.evaluate_expr


def _decided(env: Any, condition: Any) -> sympy.Basic | None:
    """What a condition is for samples of all sizes; None where they differ, or where there is nothing to decide."""
    known = _known(env)
    if not isinstance(condition, sympy.logic.boolalg.Boolean) or not condition.free_symbols:
        return None
    if not all(symbol in known and known[symbol].is_Integer for symbol in condition.free_symbols):
        return None
    symbols = sorted(condition.free_symbols, key=str)
    found = {condition.xreplace(sizes) for sizes in _samples(env, symbols, known)}
    return found.pop() if found in ({sympy.true}, {sympy.false}) else None


def _samples(env: Any, symbols: Sequence[Any], known: Any) -> Iterator[dict[Any, sympy.Integer]]:
    """Sizes that the graph serves: its own, small, large, odd and even ones, those of two symbols never alike."""
    own = {symbol: known[symbol] for symbol in symbols}
    guards = [guard.expr for guard in env.guards if guard.expr.free_symbols <= own.keys()]
    yield own
    for number in (0, 1, 2, 3, 5, 10, 30, 59, 125, 1018, 4093):
        sizes = {}
        for place, symbol in enumerate(symbols):
            bounds = env.var_to_range[symbol]
            low, width = int(bounds.lower), int(min(bounds.upper, bounds.lower + 2**40)) - int(bounds.lower) + 1
            sizes[symbol] = sympy.Integer(low + (number + 7 * place * (number + 1)) % width)
        if all(guard.xreplace(sizes) != sympy.false for guard in guards):
            yield sizes


def _known(env: Any) -> Any:
    """{symbol: its hint}."""
    return env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val  # renamed in torch 2.10


def _shape_env(gm: fx.GraphModule) -> Any:
    mode = fake_mode_of(gm)
    return mode.shape_env if mode is not None else None


def _size_symbol(env: Any, symbol: sympy.Symbol) -> SizeSymbol:
    bounds = env.var_to_range[symbol]
    hint = _known(env).get(symbol)
    sources = [_source_text(source) for source in env.var_to_sources.get(symbol, ())]
    return SizeSymbol(
        name=symbol.name,
        hint=int(hint) if hint is not None and hint.is_Integer else 1,  # unbacked: as `hint` has it
        source=" = ".join(dict.fromkeys(sources)),
        low=int(bounds.lower) if bounds.lower.is_Integer else 1,
        high=int(bounds.upper) if bounds.upper.is_Integer else None,
    )


def _source_text(source: Any) -> str:
    """Dynamo's name of a size in a reader's words: "x.size(0)" for L['x'].size()[0]."""
    name = str(source.name() if callable(source.name) else source.name)  # a property since torch 2.10
    name = re.sub(r"\b[LG]\['(\w+)'\]", r"\1", name)
    return re.sub(r"\.(size|stride)\(\)\[(\d+)\]", r".\1(\2)", name)


def is_size(value: object) -> bool:
    """Whether the value is a symbolic integer."""
    return isinstance(value, torch.SymInt)
