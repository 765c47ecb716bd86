# pyright: reportPrivateImportUsage=false
"""Symbolic sizes: expressions for the library, and what the user calls them."""

from __future__ import annotations

import contextlib
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


def _shape_env(gm: fx.GraphModule) -> Any:
    mode = fake_mode_of(gm)
    return mode.shape_env if mode is not None else None


def _size_symbol(env: Any, symbol: sympy.Symbol) -> SizeSymbol:
    known = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val  # renamed in torch 2.10
    bounds = env.var_to_range[symbol]
    hint = known.get(symbol)
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
