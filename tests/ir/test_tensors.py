"""tensors: what the values of nodes say."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from fxapprox.ir.operators import op_name
from fxapprox.ir.tensors import flops


def test_attention_on_the_cpu_is_a_product() -> None:
    """Two products of matrices in forward, five in backward."""

    def step(x: torch.Tensor) -> torch.Tensor:
        out = F.scaled_dot_product_attention(x, x, x)
        return torch.autograd.grad(out.sum(), x)[0]

    graph = make_fx(step, tracing_mode="fake")(torch.randn(2, 3, 8, 4, requires_grad=True)).graph
    counted = {op_name(node): flops(node) for node in graph.nodes if "attention" in op_name(node)}
    product = 2 * 2 * 3 * 8 * 8 * 4
    assert counted == {
        "aten._scaled_dot_product_flash_attention_for_cpu": 2 * product,
        "aten._scaled_dot_product_flash_attention_for_cpu_backward": 5 * product,
    }
