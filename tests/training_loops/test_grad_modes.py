"""Parts and passes without gradients: eval, no_grad, inference_mode, detach, teachers, gradients of inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training_loops.beside import Between, Compile, Seen, check, conv_net, gradients, mlp, slow, step

BATCH = 64


@pytest.mark.parametrize("without", [torch.inference_mode, *slow(torch.no_grad)])
def test_evaluation_between_steps(without: Callable[[], Any]) -> None:
    """Running statistics, dropout's absence and the outputs are those of plain torch.compile."""

    def loop(compile: Compile) -> Seen:
        model = nn.Sequential(conv_net(), nn.Dropout(0.5))
        run, x = compile(model), torch.randn(8, 3, 8, 8)
        first = step(model, run, x)
        model.eval()
        with without():
            evaluated = run(x)
        model.train()
        second = step(model, run, x)
        buffers = [b.clone() for b in model.buffers()]
        return Seen([*first.exact, evaluated.clone(), *second.exact, *buffers], [*first.close, *second.close])

    with inductor_config.patch(fallback_random=True):  # dropout draws what it draws in eager mode
        assert len(check(loop)) == 1


def test_training_in_eval_mode() -> None:
    """Normalizations by running statistics are trained through."""

    def loop(compile: Compile) -> Seen:
        model = conv_net()
        model(torch.randn(8, 3, 8, 8))
        model.eval()
        return step(model, compile(model), torch.randn(8, 3, 8, 8))

    check(loop)


def _without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = h.abs().amax(1, keepdim=True)
    return torch.tanh(h / (scale + 1))


def _switched(h: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    target = torch.sigmoid(h) * 2
    torch.set_grad_enabled(True)
    return torch.tanh(h * target)


def _straight_through(h: Tensor) -> Tensor:
    return h + (h.round() - h).detach()


@pytest.mark.parametrize("middle", [_without_gradients, _switched, _straight_through, Tensor.detach])
def test_parts_without_gradients(middle: Callable[[Tensor], Tensor]) -> None:
    def loop(compile: Compile) -> Seen:
        model = Between(middle)
        return step(model, compile(model), torch.randn(BATCH, 32))

    check(loop)


def test_a_teacher_that_follows_its_student() -> None:
    def loop(compile: Compile) -> Seen:
        student = mlp()
        teacher = copy.deepcopy(student).requires_grad_(False)
        with torch.no_grad():
            for p in teacher.parameters():
                p.add_(0.05 * torch.randn_like(p))

        def distance(x: Tensor) -> Tensor:
            with torch.no_grad():
                target = F.normalize(teacher(x), dim=-1)
            return (F.normalize(student(x), dim=-1) - target).square().sum(-1).mean()

        run, x = compile(distance), torch.randn(BATCH, 32)
        losses = []
        for _ in range(2):
            losses.append(run(x))
            losses[-1].backward()
            with torch.no_grad():
                for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
                    mine.lerp_(other, 0.1)
        assert all(p.grad is None for p in teacher.parameters())
        return Seen([loss.detach() for loss in losses], gradients(student))

    check(loop)


@pytest.mark.parametrize("frozen", [True, *slow(False)])
def test_gradients_of_inputs(frozen: bool) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp().requires_grad_(not frozen)
        run, x = compile(model), torch.randn(BATCH, 32)
        plain = step(model, run, x) if not frozen else Seen([], [])
        with_gradient = step(model, run, x.clone().requires_grad_())
        return Seen([*plain.exact, *with_gradient.exact], [*plain.close, *with_gradient.close])

    check(loop)


def test_requires_grad_inside() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()

        def forward(x: Tensor) -> Tensor:
            return model(x.detach().requires_grad_() * 2)

        out = compile(forward)(torch.randn(BATCH, 32))
        loss = out.square().mean()
        loss.backward()
        return Seen([loss.detach()], gradients(model))

    check(loop)


def test_random_numbers_are_drawn_in_forward_alone() -> None:
    """With Inductor's fallback_random, a dropout draws from torch's generator; backward reads its mask."""

    def loop(compile: Compile) -> Seen:
        model = nn.Sequential(mlp(), nn.Dropout(0.5))
        run = compile(model)
        out = run(torch.randn(BATCH, 32))
        before = torch.get_rng_state()
        out.square().mean().backward()
        assert torch.equal(torch.get_rng_state(), before)
        return Seen([out.detach(), before], gradients(model))

    with inductor_config.patch(fallback_random=True):
        check(loop)
