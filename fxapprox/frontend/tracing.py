"""A model as it is traced without training it: behind a code object of its own, and left as it was."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxapprox.frontend.checks import no_gradient
from fxapprox.ir.source import GraphBreak, breaks_text

_serial = itertools.count()


def fresh(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model behind a code object of its own, so that explaining never uses up Dynamo's cache of the model's."""

    def run(*args: Any) -> Any:
        return model(*args)

    code = run.__code__.replace(co_name=f"explain_{next(_serial)}")
    return types.FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)


@contextmanager
def untouched(model: Callable[..., Any]) -> Iterator[None]:
    """Puts buffers and random numbers back: code between graph breaks runs for real."""
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    kept = [b.detach().clone() for b in buffers]
    devices = sorted({b.device.index or 0 for b in buffers if b.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, kept, strict=True):
                    buffer.copy_(value)


def nothing_captured(model: Callable[..., Any], args: Sequence[Any], breaks: Sequence[GraphBreak]) -> str:
    """Why no training graph came out of a model, in words."""
    if why := no_gradient(model, args):
        return f"no training graph: {why}"
    if breaks:
        return f"no training graph was captured: torch.compile runs this model as it is\n{breaks_text(breaks)}"
    return "no training graph was captured: the output depends on no parameter (detached, or under torch.no_grad)"
