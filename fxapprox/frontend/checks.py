"""What is wrong with a model, its arguments and its loss, as far as it can be told before or after tracing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fxapprox import torch_adapter as adapter


def wrong_model(model: object) -> str:
    """Why this cannot be taken for a model; "" if it can."""
    if isinstance(model, type):
        return f"the class {model.__name__} as the model: expected a module, such as {model.__name__}(...)"
    if not callable(model):
        return f"{kind(model)} as the model: expected a module or a function"
    if adapter.is_compiled(model):
        return "a compiled model: expected the one that torch.compile was given"
    return ""


def wrong_arguments(model: Callable[..., Any], args: object) -> str:
    """Why these cannot be a model's example arguments; "" if they can."""
    if isinstance(args, dict):
        return "a dict as the args: expected a tuple of positional arguments"
    values: Sequence[Any] = args if isinstance(args, (tuple, list)) else (args,)
    if values and not adapter.tensors_in(values):
        return f"args without a tensor ({', '.join(type(value).__name__ for value in values)}): expected example inputs"
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built into C
        return ""
    try:
        signature.bind(*values)
    except TypeError as error:
        return f"args that the model does not take: {error}; it takes {signature}"
    return ""


def wrong_loss_fn(loss: object) -> str:
    """Why this cannot be a function from a model's output to a scalar; "" if it can."""
    if not callable(loss):
        return f"{kind(loss)} as the loss_fn: expected a function of the model's output"
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # built into C
        return ""
    try:
        signature.bind(object())
    except TypeError:
        return f"a loss_fn that takes {signature}: expected a function of one argument, what the model returns"
    return ""


def no_gradient(model: Callable[..., Any], args: Sequence[Any]) -> str:
    """Why a module has nothing to train; "" if it may have."""
    if not isinstance(model, nn.Module) or any(x.requires_grad for x in adapter.tensors_in(args)):
        return ""
    parameters = list(model.parameters())
    if not parameters:
        return "the model has no parameters, and no argument requires a gradient"
    if not any(parameter.requires_grad for parameter in parameters):
        return f"none of the model's {len(parameters)} parameters requires a gradient, and no argument does"
    return ""


def wrong_loss(loss: object) -> str:
    """Why backward cannot start from this; "" if it can."""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return "" if loss.requires_grad else "a loss that depends on no parameter (detached, or under torch.no_grad)"
    return f"{kind(loss)} as the loss: expected a scalar tensor"


def kind(value: object) -> str:
    """A value in words: "a float", "float32[64, 10]", "nothing"."""
    if value is None:
        return "nothing"
    if not isinstance(value, Tensor):
        name = type(value).__name__
        return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
