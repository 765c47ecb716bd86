"""For Hugging Face's Accelerate and Trainer: "fxapprox" as a backend's name, and models that return their loss alone.

Accelerate looks a backend up in an enumeration of its own, before torch.compile gets to see its name.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

from accelerate.utils import DynamoBackend
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

NAME = "FXAPPROX"  # Accelerate spells them in capitals


def register_backend() -> None:
    """Adds our name to the backends that Accelerate knows, for this process; twice does no harm.

    For ``TrainingArguments(torch_compile_backend="fxapprox")`` and ``TorchDynamoPlugin(backend="fxapprox")``; neither
    takes options, which come from the environment (:func:`fxapprox.options.from_environment`).
    """
    member = str.__new__(DynamoBackend, NAME)
    member._name_ = member._value_ = NAME
    setattr(DynamoBackend, NAME, member)  # by its name Python 3.11.2, for one, copies and pickles a member
    inherited = DynamoBackend._missing_

    def missing(value: object) -> object:
        return member if value == NAME else inherited(value)

    DynamoBackend._missing_ = staticmethod(missing)  # type: ignore[assignment]


def without_logits(model: Model) -> Model:
    """Has a model of the transformers package return its loss alone where it trains with labels; for the Trainer.

    Its forward also returns logits (and caches), which a training loop drops. Backward then takes a gradient for the
    logits all the same, zeros as large as they are. The loss function is looked up here, once: in forward some classes
    (GPT-2's) warn that they take the default, and the warning breaks the graph between logits and loss. To be called
    before the model is compiled. Without labels and in evaluation mode nothing changes. A Trainer that reads logits in
    training (``label_smoothing_factor``, a loss function of one's own) cannot do without them.

    Args:
        model: returns a ``ModelOutput`` with a ``loss``, or with ``return_dict=False`` a tuple that begins with it.

    Returns: the same model; only its attributes ``forward`` and ``loss_function`` are other ones.
    """
    looked_up = getattr(type(model), "loss_function", None)
    if isinstance(looked_up, property) and looked_up.fset is not None:
        model.loss_function = model.loss_function
    forward = functools.partial(_loss_alone, model)  # a copy of the model gets one of its own
    forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]  # the Trainer reads it
    model.forward = forward
    return model


def _loss_alone(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    output = type(model).forward(model, *args, **kwargs)
    if not model.training:
        return output
    if isinstance(output, tuple):
        return output[:1] if kwargs.get("labels") is not None else output
    loss = getattr(output, "loss", None)
    return output if loss is None else type(output)(loss=loss)
