"""Forward and backward in other orders than in turns: accumulation, clipping, two forwards, two backwards."""

from __future__ import annotations

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training_loops.beside import LOWERINGS, Compile, Seen, assert_same, check, gradients, mlp, slow


def batch(size: int = 64) -> Tensor:
    return torch.randn(size, 32)


def loss_of(run: Compile, x: Tensor) -> Tensor:
    return run(x).square().mean()


def test_gradients_accumulate() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        run, losses = compile(model), []
        for _ in range(3):
            losses.append(loss_of(run, batch()) / 3)
            losses[-1].backward()
        return Seen([loss.detach() for loss in losses], gradients(model))

    check(loop)


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, *slow(nn.utils.clip_grad_value_)])
def test_gradients_are_clipped(clip: Compile) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        loss = loss_of(compile(model), batch())
        loss.backward()
        before = gradients(model)
        norm = clip(model.parameters(), 0.01)
        return Seen([loss.detach()], [*before, *gradients(model), norm])

    check(loop)


@pytest.mark.parametrize("sizes", [(64, 96, 64), *slow((64, 64))])
@pytest.mark.parametrize("last_first", [True, *slow(False)])
def test_several_forwards_before_backward(sizes: tuple[int, ...], last_first: bool) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        run = compile(model)
        losses = [loss_of(run, batch(size)) for size in sizes]
        for loss in reversed(losses) if last_first else losses:
            loss.backward()
        return Seen([loss.detach() for loss in losses], gradients(model))

    check(loop)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_backward_twice(lowering: str) -> None:
    """What is saved survives the first backward."""

    def loop(compile: Compile) -> Seen:
        model = mlp()
        loss = loss_of(compile(model), batch())
        loss.backward(retain_graph=True)
        first = gradients(model)
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert_same(gradients(model), first)
        return Seen([loss.detach()], first)

    # torch.compile asks for it where backward reuses the memory of what is saved
    with functorch_config.patch(donated_buffer=lowering == "eager"):
        check(loop, lowering=lowering)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_retaining_a_graph_whose_backward_was_compiled_to_run_once(lowering: str) -> None:
    """torch.compile refuses it, and says which of its settings allows it."""

    def loop(compile: Compile) -> Seen:
        run = compile(mlp())
        loss_of(run, batch()).backward()
        loss = loss_of(run, batch())
        with pytest.raises(RuntimeError, match=r"donated_buffer=False"):
            loss.backward(retain_graph=True)
        return Seen([loss.detach()], [])

    check(loop, lowering=lowering)


class Heads(nn.Module):
    """Three outputs from one trunk; the last is not differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(32, 64), nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.gelu(self.trunk(x))
        left = self.left(h)
        return left, self.right(h.relu()), left.argmax(-1)


@pytest.mark.parametrize("used", [(0,), (1,), *slow((0, 1))])
def test_outputs_that_the_loss_does_not_use(used: tuple[int, ...]) -> None:
    def loop(compile: Compile) -> Seen:
        model = Heads()
        out = compile(model)(batch())
        torch.stack([out[i].square().mean() for i in used]).sum().backward()
        return Seen([o.detach() for o in out], gradients(model))

    check(loop)


@pytest.mark.parametrize("order", [(1, 0), *slow((0, 1))])
def test_one_backward_for_each_output(order: tuple[int, int]) -> None:
    def loop(compile: Compile) -> Seen:
        model = Heads()
        out = compile(model)(batch())
        first, second = (out[i].square().mean() for i in order)
        first.backward(retain_graph=True)
        second.backward()
        return Seen([o.detach() for o in out], gradients(model))

    check(loop)


def test_gradients_by_autograd_grad() -> None:
    def loop(compile: Compile) -> Seen:
        model, x = mlp(), batch().requires_grad_()
        loss = loss_of(compile(model), x)
        return Seen([loss.detach()], torch.autograd.grad(loss, [x, *model.parameters()]))

    check(loop)


def test_double_backward_is_refused_as_torch_refuses_it() -> None:
    def loop(compile: Compile) -> Seen:
        x = batch().requires_grad_()
        loss = loss_of(compile(mlp()), x)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            gradient.square().sum().backward()
        return Seen([loss.detach()], [gradient.detach()])

    check(loop)
