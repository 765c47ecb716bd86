"""What trains beside plain torch.compile: the codecs, what must fail, chance, and the paper's comparisons.

All arms of a seed start from the same weights, and see the same batches and the same dropout, but for those that say
otherwise. A new arm is a new row of `ARMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.codecs import Group
from fxapprox.frontend.tracing import fresh
from tools.convergence.task import Objective, Task
from tools.zoo import training

STRUCTURED = 2  # dimensions; smaller tensors are statistics, and are left alone
LEAST = 1024  # elements; as much as `min_bytes` of the library leaves alone

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        about: in a few words, for tables.
        compile: from the objective, which it may change, and the lowering to what is called for the loss.
        role: "reference"; "claim", whose equivalence is tested; "control", which must not be equivalent; "noise", what
            chance does; "comparison".
        needs: what a task must have.
        nudged: its weights start a little away.
        order: another order of the batches, if it is not 0.
        probed: whether its gradients are another's than the reference's.
    """

    about: str
    compile: Callable[[Objective, str], Step]
    role: str = "claim"
    needs: str = ""
    nudged: bool = False
    order: int = 0
    probed: bool = True

    def fits(self, task: Task) -> bool:
        """Whether a task has what it needs."""
        return not self.needs or self.needs in task.has


def plain(objective: Objective, lowering: str) -> Step:
    """torch.compile alone."""
    return training.plain(fresh(objective), lowering, dynamic=False)  # Dynamo takes two that differ in hooks for one


def coded(**options: Any) -> Callable[[Objective, str], Step]:
    """Compiled by fxapprox."""
    return lambda objective, lowering: fxapprox.compile(
        objective, lowering=lowering, strict=True, dynamic=False, **options
    )


def min_max(x: Tensor, bits: int) -> Tensor:
    """Rounded to 2^bits levels between least and largest of each sample and channel, or of each row."""
    dims = tuple(range(2, x.dim())) or (-1,)
    if x.dim() == 3:
        dims = (-1,)
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    width = (high - low).clamp(min=torch.finfo(x.dtype).tiny) / (2**bits - 1)
    return low + ((x - low) / width).round() * width


# What the paper shows to fail: decisions taken from approximate values ------------------------------------------


class DecidesAgain(torch.autograd.Function):
    """ReLU whose backward looks at what became of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x > 0)


class NaiveReLU(TorchFunctionMode):
    """Puts `DecidesAgain` in place of every ReLU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.relu, torch.relu):
            return DecidesAgain.apply(args[0])
        return func(*args, **(kwargs or {}))


def naive(objective: Objective, _: str, *, bits: int = 4) -> Step:
    """Run as it is, with every activation through a min/max code before backward reads it, for its sign as well."""

    def pack(x: Tensor) -> Tensor:
        whole = x if x._base is None else x._base
        computed = whole.grad_fn is not None and x.is_floating_point()
        return min_max(x, bits) if computed and x.dim() >= STRUCTURED and x.numel() >= LEAST else x

    def step(x: Tensor, y: Tensor) -> Tensor:
        with saved_tensors_hooks(pack, lambda saved: saved), NaiveReLU():
            return objective(x, y)

    return step


# The paper's comparisons ----------------------------------------------------------------------------------------


class CodedGradient(torch.autograd.Function):
    """A value as it is, whose gradient goes through a min/max code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return min_max(gradients[0], ctx.bits), None


def coded_gradients(bits: int) -> Callable[[Objective, str], Step]:
    """torch.compile of the network with the gradient of every layer's output in so many bits."""

    def compile_(objective: Objective, lowering: str) -> Step:
        for module in objective.network.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda _, __, y: CodedGradient.apply(y, bits))
        return plain(objective, lowering)

    return compile_


def recomputed(objective: Objective, lowering: str) -> Step:
    """torch.compile of the network with every block in torch.utils.checkpoint."""
    blocks = objective.network.blocks
    assert isinstance(blocks, nn.Module)
    for block in blocks.children():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return plain(objective, lowering)


EXACT = coded(bits=None)
ARMS = {
    "plain": Arm("torch.compile", plain, "reference", probed=False),
    "exact": Arm("exact", EXACT),
    "8-bits": Arm("8 bits", coded(bits=8)),
    "4-bits": Arm("4 bits", coded(bits=4)),
    "error": Arm("error=0.02", coded(error=0.02)),
    "auto-3": Arm("auto, average 3 bits", coded(bits="auto", average_bits=3)),
    "2-bits": Arm("2 bits", coded(bits=2)),
    "naive": Arm("4 bits, decisions taken again", naive, "control", needs="relu"),
    "naive-2": Arm("2 bits, decisions taken again", partial(naive, bits=2), "control", needs="relu"),
    "all-3-bits": Arm("3 bits for everything", coded(policy=lambda _: Group(3)), "control", needs="attention"),
    "nudged": Arm("exact, weights 0.01% away", EXACT, "noise", nudged=True, probed=False),
    "reordered": Arm("exact, batches in another order", EXACT, "noise", order=1, probed=False),
    "gradients-8": Arm("gradients in 8 bits", coded_gradients(8), "comparison"),
    "gradients-4": Arm("gradients in 4 bits", coded_gradients(4), "comparison"),
    "recomputed": Arm("blocks computed again", recomputed, "comparison", needs="blocks", probed=False),
}
