"""Functions that Inductor fuses with what reads their results: lowered once, and the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.utils import fresh_cache
from torch.fx.experimental.proxy_tensor import make_fx

from fxapprox import torch_adapter as adapter
from fxapprox.torch_adapter.speedups import inlined
from fxapprox.torch_adapter.speedups.switch import sped_up


def with_calls(function: Callable[..., tuple[Tensor, ...]], *examples: Tensor) -> Callable[..., Any]:
    """A compiled graph that calls a function of two operands, and again with its first result for the first one."""

    def half(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        mode = adapter.fake_mode_of(gm)
        assert mode is not None
        graph = fx.Graph()
        x, y = (graph.placeholder(name) for name in ("x", "y"))
        x.meta["val"], y.meta["val"] = (node.meta["val"] for node in gm.graph.find_nodes(op="placeholder"))
        body = adapter.trace(function, [x.meta["val"], y.meta["val"]], mode)
        results = next(iter(body.graph.find_nodes(op="output"))).args[0]
        first = adapter.call_inlined(graph, "function", [x, y], results)
        second = adapter.call_inlined(graph, "function", [first[0], y], results)
        graph.output(tuple(second))
        return compile_fx_inner(fx.GraphModule({"function": body}, graph), inputs, **kwargs)

    plain = make_fx(lambda x, y: function(function(x, y)[0], y))(*examples)
    compiled: Any = compile_fx(plain, list(examples), inner_compile=half)
    return compiled


def scaled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = (x * y.abs() + 1).reshape(4, 2, 32).transpose(0, 1)
    return z.transpose(0, 1).reshape(8, 32) / 2, z.reshape(8, 32) > 1


def with_memory(x: Tensor, y: Tensor) -> tuple[Tensor]:
    """Inductor does not compute an exponential for every element of a row again."""
    return (x + y[:, :1].exp().expand(8, 32),)


@pytest.mark.inductor
@pytest.mark.parametrize("function", [scaled, with_memory])
@pytest.mark.parametrize("once", [False, True])
def test_a_call_of_what_a_call_gave(function: Callable[..., tuple[Tensor, ...]], once: bool) -> None:
    """A value is another one in every call, also where what is read twice is traced once."""
    x, y = torch.randn(8, 32), torch.randn(8, 32)
    expected = function(function(x, y)[0], y)
    lowered = []
    run = inlined._Lowering.run

    def counted(self: Any, *args: Any) -> Any:
        lowered.append(self)
        return run(self, *args)

    lowering = mock.patch.object(inlined._Lowering, "run", counted)
    with fresh_cache(), lowering, sped_up("backward" if once else "forward"):
        found = with_calls(function, x, y)(x, y)
    for result, other in zip(found, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-6, atol=1e-6)
    # what wants memory is tried once, and lowered for each call
    assert len(lowered) == (1 if function is scaled else 3)


def test_as_it_is() -> None:
    x, y = torch.randn(8, 32), torch.randn(8, 32)
    body = fx.symbolic_trace(scaled)
    for result, other in zip(inlined.inlined(body, x, y), scaled(x, y), strict=True):
        assert torch.equal(result, other)
