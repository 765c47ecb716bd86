"""Tracing a function, and splicing what comes out into a graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.joint import erase_unused
from fxapprox.ir.tensors import symbolic_shape


class Inliner:
    """Traces functions and splices them into one graph; a function traced before for equal inputs is not traced again.

    Equal layers make equal codecs, and tracing is what costs time: so do settings that are tried one after the other
    (``adapter.sharing_traces``).
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._symbols = adapter.size_symbols(gm)
        self._mode = adapter.fake_mode_of(gm)
        self._traces = adapter.traces_of(self._mode)

    def inline(
        self, fn: Callable[..., Any], args: Sequence[fx.Node], *, before: fx.Node, key: Hashable
    ) -> tuple[fx.Node, ...]:
        """Traces ``fn`` over the values of ``args`` and puts its nodes before a node.

        The nodes get their metadata from the trace. Symbolic sizes that the graph takes as inputs are at hand in the
        trace, so ``fn`` may use symbolic shapes that no operand has.

        Args:
            fn: from tensors to a tuple of tensors.
            key: says what ``fn`` does, apart from the shapes of its inputs; other symbolic sizes as expressions.

        Returns: the nodes that hold what ``fn`` returns.
        """
        inputs = [*args, *(n for n in self._symbols if n not in args)]
        traced = self._trace(fn, inputs, len(args), key)
        env: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
        result: tuple[fx.Node, ...] = ()
        with self._gm.graph.inserting_before(before):
            for node in traced.graph.nodes:
                if node.op == "output":
                    result = tuple(env[n] for n in node.args[0])
                elif node.op == "get_attr":
                    raise UnsupportedGraph("inline", f"a codec captured the tensor {node.target!r}; use torch.full")
                elif node.op != "placeholder":
                    env[node] = adapter.copy_node(node, self._gm.graph, env.__getitem__)
        return result

    def _trace(self, fn: Callable[..., Any], inputs: Sequence[fx.Node], count: int, key: Hashable) -> fx.GraphModule:
        if self._mode is None:
            raise UnsupportedGraph("inline", "the graph has no tensor")
        values = [n.meta["val"] for n in inputs]
        full_key = key, tuple(map(signature, values))
        if full_key not in self._traces:
            traced = adapter.trace(lambda *given: fn(*given[:count]), values, self._mode)
            erase_unused(traced.graph)
            self._traces[full_key] = traced
        return self._traces[full_key]


def signature(value: Any) -> Hashable:
    """Equal for values of which a trace is the same: tensors, and symbolic sizes by their expressions."""
    if not isinstance(value, torch.Tensor):
        return adapter.expression(value)
    strides = tuple(map(adapter.expression, value.stride()))
    return symbolic_shape(value), strides, value.dtype, value.device
