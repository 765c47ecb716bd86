"""The whole way: a program through torch.compile, Dynamo and autograd included."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxapprox import Options
from fxapprox.errors import OptionError
from fxapprox.frontend.backend import Backend
from tools.fuzz.choices import with_policy
from tools.fuzz.program import SIZES, Program
from tools.fuzz.properties import OTHER_SIZES, finite_as, same


def check_compiled(program: Program, **options: Any) -> list[str]:
    """Compiles a program with these options, without loss and exactly partitioned, and compares a step of each.

    Returns: what was noteworthy: torch.compile failed by itself, a budget that nothing fits.
    """
    for sizes in (SIZES, OTHER_SIZES) if program.dynamic else (SIZES,):
        try:
            _steps(program, "aot_eager", sizes)
        except Exception as error:
            return [f"torch.compile: {type(error).__name__}"]
        expected = _steps(program, _backend({"bits": None, "min_bytes": 2**60}), sizes)
        found = _steps(program, _backend({"policy": "identity"}), sizes)
        same(found, expected, "identity: output, input or gradient")
        try:
            lossy = _steps(program, _backend(options), sizes)
        except OptionError:
            return ["refused"]
        count = len(program.outputs) + len(program.inputs)
        same(lossy[:count], expected[:count], "output or input")
        finite_as(lossy[count:], expected[count:], "compiled")
    return []


def _backend(options: dict[str, Any]) -> Backend:
    return Backend(Options(**with_policy({"min_bytes": 0, "lowering": "eager", **options})))


def _steps(program: Program, backend: str | Backend, sizes: Mapping[str, int]) -> list[Any]:
    """Of a step of these sizes; it was compiled at others, where they are symbolic."""
    torch.compiler.reset()
    function = program.function()
    compiled = torch.compile(lambda *given: function(*given), backend=backend, dynamic=program.dynamic)
    if sizes != SIZES:
        _step(program, compiled, SIZES)
    return _step(program, compiled, sizes)


def _step(program: Program, compiled: Callable[..., Any], sizes: Mapping[str, int]) -> list[Any]:
    """Outputs, inputs as forward leaves them, and their gradients."""
    torch.manual_seed(5)
    inputs = [each.make(sizes) for each in program.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = compiled(sizes["n"], *inputs)
        results = [*(o.detach().clone() for o in outputs), *(i.detach().clone() for i in inputs)]
        torch.autograd.backward(*_weighted(outputs))
    return results + [i.grad for i in inputs if i.requires_grad]


def _weighted(outputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that a gradient can come into, and random gradients."""
    able = [o for o in outputs if o.requires_grad]
    generator = torch.Generator().manual_seed(7)
    return able, [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in able]
