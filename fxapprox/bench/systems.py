"""What a training step can be run with: PyTorch alone in several ways, and fxapprox in several settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.errors import FxApproxError
from fxapprox.frontend.target import Target

Prepared = tuple[Callable[..., Tensor], AbstractContextManager]
BASELINE, REFERENCE = "compile", "eager"  # what ratios are to; what runs in float64
LEAST = 1024  # elements; smaller tensors are no activations worth a code


@dataclass(frozen=True)
class System:
    """One way to run a training step.

    Attributes:
        name: on the command line.
        label: in tables.
        family: systems of one family make one curve in the plot.
        prepare: from a target to the function that gives its loss, and the context that forward and backward run in.
        compiled: whether random numbers are drawn as torch.compile draws them.
    """

    name: str
    label: str
    family: str
    prepare: Callable[[Target], Prepared]
    compiled: bool = True


def _eager(target: Target) -> Prepared:
    return target.step, nullcontext()


def _checkpointed(target: Target) -> Prepared:
    for layer in chain_of_layers(target.model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return target.step, nullcontext()


def _eight_bit_hooks(target: Target) -> Prepared:
    return target.step, torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)


def _compiled(context: Callable[[], AbstractContextManager], target: Target) -> Prepared:
    return torch.compile(target.step, dynamic=False), context()


def _ours(options: dict[str, Any], target: Target) -> Prepared:
    return fxapprox.compile(target.step, dynamic=False, **options), nullcontext()


def chain_of_layers(model: object) -> list[nn.Module]:
    """The layers of a model that follow each other: the list or sequence of modules that has most of its parameters.

    Of lists that have the same share, the one with the most layers: a whole network in one Sequential is no chain.

    Raises:
        FxApproxError: there is none with at least two layers and half of the parameters.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    total = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0
    chains = [list(m) for m in modules if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]
    large = [layers for layers in chains if 2 * _parameters(layers) >= total]
    if not total or not large:
        raise FxApproxError("no list of layers has half of the parameters: nothing to put checkpoints between")
    return max(large, key=len)


def _parameters(layers: list[nn.Module]) -> int:
    return sum(p.numel() for layer in layers for p in layer.parameters())


def _pack(x: Tensor) -> Any:
    """A code of eight bits with one scale, for floats that are not parameters; others as they are."""
    if not x.is_floating_point() or isinstance(x, nn.Parameter) or x.numel() < LEAST:
        return x
    scale = x.abs().amax() / 127
    return (x / scale).round().to(torch.int8), scale, x.dtype


def _unpack(stored: Any) -> Tensor:
    if isinstance(stored, Tensor):
        return stored
    code, scale, dtype = stored
    return code.to(dtype) * scale


def _budget(fraction: float) -> System:
    context = partial(adapter.activation_memory_budget, fraction)
    label = f"torch.compile, budget {fraction:g}"
    return System(f"torch-budget-{fraction:g}", label, "torch.compile, budget", partial(_compiled, context))


def _fxapprox(name: str, label: str, **options: Any) -> System:
    return System(f"fxapprox-{name}", f"fxapprox, {label}", "fxapprox", partial(_ours, options))


SYSTEMS = {
    system.name: system
    for system in (
        System("eager", "eager", "eager", _eager, compiled=False),
        System("checkpoint", "eager, checkpoints", "eager, checkpoints", _checkpointed, compiled=False),
        System("int8-hooks", "eager, int8 hooks", "eager, int8 hooks", _eight_bit_hooks, compiled=False),
        System(BASELINE, "torch.compile", "torch.compile", partial(_compiled, nullcontext)),
        _budget(0.5),
        _budget(0.2),
        System("fp8", "torch.compile, fp8", "torch.compile, fp8", partial(_compiled, adapter.fp8_activations)),
        _fxapprox("exact", "exact", bits=None),
        _fxapprox("8", "8 bits", bits=8),
        _fxapprox("4", "4 bits", bits=4),
        _fxapprox("2", "2 bits", bits=2),
        _fxapprox("4-checkpoint", "4 bits, checkpoints", bits=4, checkpoint="sqrt"),
        _fxapprox("budget-0.3", "budget 0.3", memory_budget=0.3),
    )
}  # fmt: skip
