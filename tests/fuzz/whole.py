"""The whole way: a program through torch.compile, Dynamo and autograd included."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fxapprox import Options
from fxapprox.backend import Backend
from fxapprox.errors import OptionError
from tests.fuzz.choices import with_policy
from tests.fuzz.program import BATCH, Program
from tests.fuzz.properties import finite_as, same


def check_compiled(program: Program, **options: Any) -> list[str]:
    """Compiles a program with these options, without loss and exactly partitioned, and compares a step of each.

    Returns: what was noteworthy: torch.compile failed by itself, a budget that nothing fits.
    """
    try:
        _step(program, "aot_eager")
    except Exception as error:
        return [f"torch.compile: {type(error).__name__}"]
    expected = _step(program, _backend({"bits": None, "min_bytes": 2**60}))
    found = _step(program, _backend({"policy": "identity"}))
    same(found, expected, "identity: output, input or gradient")
    try:
        lossy = _step(program, _backend(options))
    except OptionError:
        return ["refused"]
    count = len(program.outputs) + len(program.inputs)
    same(lossy[:count], expected[:count], "output or input")
    finite_as(lossy[count:], expected[count:], "compiled")
    return []


def _backend(options: dict[str, Any]) -> Backend:
    return Backend(Options(**with_policy({"min_bytes": 0, "lowering": "eager", **options})))


def _step(program: Program, backend: str | Backend) -> list[Any]:
    """Outputs, inputs as forward leaves them, and their gradients."""
    torch._dynamo.reset()
    torch.manual_seed(5)
    function, batch = program.function, BATCH
    compiled = torch.compile(lambda *inputs: function(batch, *inputs), backend=backend, dynamic=program.dynamic)
    inputs = [each.make() for each in program.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = compiled(*inputs)
        results = [*(o.detach().clone() for o in outputs), *(i.detach().clone() for i in inputs)]
        torch.autograd.backward(*_weighted(outputs))
    return results + [i.grad for i in inputs if i.requires_grad]


def _weighted(outputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that a gradient can come into, and random gradients."""
    able = [o for o in outputs if o.requires_grad]
    generator = torch.Generator().manual_seed(7)
    return able, [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in able]
