"""Hooks: on tensors, modules, parameters, and on what autograd saves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import fxapprox
from fxapprox import FxApproxError
from tests.training_loops.beside import LOWERINGS, Between, Compile, Seen, check, gradients, mlp, slow, step

BATCH = 64


def test_hooks_on_inputs_and_parameters() -> None:
    def loop(compile: Compile) -> Seen:
        model, x = mlp(), torch.randn(BATCH, 32, requires_grad=True)
        x.register_hook(lambda g: g * 3)
        model[0].weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
        return step(model, compile(model), x)

    check(loop)


def test_a_hook_on_a_value_inside() -> None:
    def loop(compile: Compile) -> Seen:
        def middle(h: Tensor) -> Tensor:
            h = torch.tanh(h)
            h.register_hook(lambda g: g * 0.5)
            return h

        model = Between(middle)
        return step(model, compile(model), torch.randn(BATCH, 32))

    check(loop)


def test_parameters_updated_as_soon_as_their_gradient_is_there() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        seen: list[Tensor] = []

        def update(parameter: Tensor) -> None:
            assert parameter.grad is not None
            seen.append(parameter.grad.clone())
            with torch.no_grad():
                parameter -= 0.1 * parameter.grad
            parameter.grad = None

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(update)
        run, x = compile(model), torch.randn(BATCH, 32)
        losses = [step(model, run, x).exact[0] for _ in range(2)]
        return Seen(losses[:1], [*losses, *sorted(seen, key=lambda g: (g.numel(), float(g.norm())))])

    check(loop)


class Chain(nn.Sequential):
    """With a forward that Dynamo compiles where there are hooks: no loop, and no code of torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth, fifth = self
        return fifth(fourth(third(second(first(x)))))


def _forward_hooks(model: nn.Sequential) -> None:
    model[0].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    model[2].register_forward_hook(lambda _, args, out: out + 1)


def _backward_hooks(model: nn.Sequential) -> None:
    model[2].register_full_backward_pre_hook(lambda _, grads: (grads[0] * 2,))
    model[0].register_full_backward_hook(lambda _, into, out: None)


def _root_hook(model: nn.Sequential) -> None:
    model.register_full_backward_hook(lambda _, into, out: tuple(g * 2 if g is not None else None for g in into))


@pytest.mark.parametrize("register", [_backward_hooks, *slow(_forward_hooks, _root_hook)])
def test_hooks_on_modules(register: Callable[[nn.Sequential], None]) -> None:
    def loop(compile: Compile) -> Seen:
        model = Chain(*mlp())
        register(model)
        return step(model, compile(model), torch.randn(BATCH, 32, requires_grad=True))

    assert check(loop)


def test_what_hooks_keep_from_being_captured_is_told() -> None:
    """torch.compile runs a Sequential of torch's own with such hooks as it is."""
    model = mlp()
    _backward_hooks(model)
    with pytest.raises(FxApproxError, match="nothing of Sequential was captured"):
        fxapprox.compile(model, lowering="eager", strict=True)(torch.randn(BATCH, 32))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_saved_tensors_on_another_device(lowering: str) -> None:
    def loop(compile: Compile) -> Seen:
        model, x = mlp(), torch.randn(BATCH, 32)
        with save_on_cpu():
            return step(model, compile(model), x)

    check(loop, lowering=lowering)


def test_hooks_see_the_codes() -> None:
    packed: list[Tensor] = []

    def pack(saved: Tensor) -> Tensor:
        packed.append(saved)
        return saved.clone()

    def loop(compile: Compile) -> Seen:
        packed.clear()
        model, x = mlp(), torch.randn(BATCH, 32)
        run = compile(model)
        with saved_tensors_hooks(pack, torch.Tensor.clone):
            return step(model, run, x)

    check(loop)
    codes = [t for t in packed if t.dtype == torch.uint8]
    assert sum(t.nbytes for t in codes) >= 2 * BATCH * 64


def test_hooks_that_torch_traces_into_the_graphs() -> None:
    """Graph modules as pack and unpack become a part of forward and backward; codes pass through them."""
    pack = torch.fx.symbolic_trace(_doubled)
    unpack = torch.fx.symbolic_trace(_halved)

    def loop(compile: Compile) -> Seen:
        model, x = mlp(), torch.randn(BATCH, 32)
        with saved_tensors_hooks(pack, unpack):
            return step(model, compile(model), x)

    check(loop)


def _doubled(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.clone(), x.abs()


def _halved(packed: tuple[Tensor, Tensor]) -> Tensor:
    return packed[0]


def test_hooks_on_outputs() -> None:
    """retain_grad on an output, and a hook on it."""

    def loop(compile: Compile) -> Seen:
        model = mlp()
        out = compile(model)(torch.randn(BATCH, 32))
        out.retain_grad()
        out.register_hook(lambda g: g * 2)
        out.square().mean().backward()
        return Seen([out.detach()], [*gradients(model), out.grad])

    check(loop)
