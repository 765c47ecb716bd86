"""Views that undo each other are taken out, and no bit changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import op_name
from fxapprox.ir.views import cancel_views
from fxapprox.torch_adapter import FakeTensorMode

X, W = torch.randn(6, 4), torch.randn(4, 5)


def cast(x: Tensor, w: Tensor) -> Tensor:
    """As logits are, in bfloat16."""
    return (x @ w).bfloat16().view(2, 3, 5).float().mul(0.5).tanh().view(6, 5).exp()


def read_twice(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The view is read by others, too."""
    view = (x @ w).view(2, 3, 5)
    return view.tanh().view(6, 5).exp(), view.sum(1)


def kept(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What lies between is wanted as it is."""
    between = (x @ w).view(2, 3, 5).tanh()
    return between.view(6, 5).exp(), between


def other(x: Tensor, w: Tensor) -> Tensor:
    """Rows of another length."""
    return (x @ w).view(2, 3, 5).tanh().view(5, 6).exp()


def turned(x: Tensor, w: Tensor) -> Tensor:
    """The same shape, other elements."""
    return (x @ w).view(3, 2, 5).tanh().transpose(0, 1).reshape(6, 5).exp()


@pytest.mark.parametrize(("name", "left"), [("cast", 0), ("read_twice", 1), ("kept", 2), ("other", 2), ("turned", 2)])
def test_views(name: str, left: int) -> None:
    function: Callable[..., object] = globals()[name]
    mode = FakeTensorMode()
    gm: fx.GraphModule = adapter.trace(function, [mode.from_tensor(t) for t in (X, W)], mode)
    expected, before = gm(X, W), {node.name for node in gm.graph.nodes}
    assert cancel_views(gm.graph, mode) == (name in ("cast", "read_twice"))
    gm.recompile()
    torch.testing.assert_close(gm(X, W), expected, rtol=0, atol=0)
    gm.graph.lint()
    assert {node.name for node in gm.graph.nodes} <= before
    assert sum(op_name(node) == "aten.view" for node in gm.graph.nodes) == left
    for node in gm.graph.nodes:
        if node.op == "call_function":
            given = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with mode:
                assert node.target(*given[0], **given[1]).shape == node.meta["val"].shape
