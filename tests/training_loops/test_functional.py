"""torch.func in and around a compiled function, where torch.compile takes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn import functional as F

from tests.training_loops.beside import Compile, Seen, check, gradients, mlp

BATCH = 64


def test_functional_call() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        state = {name: (p.detach() * 1.5).requires_grad_() for name, p in model.named_parameters()}
        run = compile(lambda state, x: functional_call(model, state, (x,)))
        loss = run(state, torch.randn(BATCH, 32)).square().mean()
        loss.backward()
        assert all(p.grad is None for p in model.parameters())
        return Seen([loss.detach()], gradients(*state.values()))

    check(loop)


def test_vmap_over_an_ensemble() -> None:
    def loop(compile: Compile) -> Seen:
        models = [mlp() for _ in range(3)]
        state, _ = stack_module_state(models)
        run = compile(vmap(lambda state, x: functional_call(models[0], state, (x,)), in_dims=(0, None)))
        loss = run(state, torch.randn(BATCH, 32)).square().mean()
        loss.backward()
        return Seen([loss.detach()], gradients(*state.values()))

    check(loop)


@pytest.mark.slow
def test_vmap_inside() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()

        def forward(x: Tensor) -> Tensor:
            return vmap(lambda row: F.normalize(model(row) + 1, dim=0))(x)

        loss = compile(forward)(torch.randn(BATCH, 32)).sin().mean()
        loss.backward()
        return Seen([loss.detach()], gradients(model))

    check(loop)


def test_gradients_taken_inside_are_exact() -> None:
    """torch.func.grad in a compiled function is a forward like any other: nothing is stored for it."""

    def loop(compile: Compile) -> Seen:
        model = mlp()
        state = {name: p.detach() for name, p in model.named_parameters()}

        def loss(state: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(model, state, (x,)).square().mean()

        found = compile(grad(loss))(state, torch.randn(BATCH, 32))
        return Seen(list(found.values()), [])

    assert check(loop) == ()


@pytest.mark.slow
def test_a_penalty_on_gradients_taken_inside() -> None:
    """Double backward as torch.compile takes it: the inner derivative is a part of the traced forward."""

    def loop(compile: Compile) -> Seen:
        model = mlp()

        def penalty(x: Tensor) -> Tensor:
            slopes = vmap(grad(lambda row: model(row).sum()))(x)
            return (slopes.square().sum(1) - 1).square().mean()

        loss = compile(penalty)(torch.randn(BATCH, 32))
        loss.backward()
        return Seen([loss.detach()], gradients(model))

    check(loop, limit=0.05)


@pytest.mark.slow
def test_jacobians_inside() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        run = compile(lambda x: vmap(jacrev(model))(x).square().mean())
        loss = run(torch.randn(16, 32))
        loss.backward()
        return Seen([loss.detach()], gradients(model))

    check(loop, limit=0.05)
