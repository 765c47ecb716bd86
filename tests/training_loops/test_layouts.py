"""Channels-last images and weights: the same gradients, with the strides that plain torch.compile gives them."""

from __future__ import annotations

import pytest
import torch

from tests.training_loops.beside import LOWERINGS, Compile, Seen, check, conv_net, slow, step


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("weights", [True, *slow(False)])
@pytest.mark.parametrize("images", [True, *slow(False)])
def test_channels_last(images: bool, weights: bool, lowering: str) -> None:
    def loop(compile: Compile) -> Seen:
        model, x = conv_net(), torch.randn(8, 3, 8, 8)
        if weights:
            model = model.to(memory_format=torch.channels_last)
        if images:
            x = x.to(memory_format=torch.channels_last)
        return step(model, compile(model), x.requires_grad_())

    check(loop, lowering=lowering)


def test_an_expanded_and_a_transposed_input() -> None:
    def loop(compile: Compile) -> Seen:
        model = conv_net()
        x = torch.randn(8, 1, 8, 8).expand(8, 3, 8, 8)
        y = torch.randn(8, 8, 8, 3, requires_grad=True)
        first = step(model, compile(model), x)
        second = step(model, compile(model), y.transpose(1, 3))
        assert y.grad is not None
        return Seen([*first.exact, *second.exact], [*first.close, *second.close, y.grad])

    check(loop)
