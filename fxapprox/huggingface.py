"""Lets Hugging Face's Accelerate, and with it the Trainer, take "fxapprox" for the name of a backend.

Accelerate looks a backend up in an enumeration of its own, before torch.compile gets to see its name.
"""

from __future__ import annotations

from accelerate.utils import DynamoBackend

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
