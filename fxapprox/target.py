"""Loads a command line's TARGET: a factory that builds a model and its example inputs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fxapprox.errors import TargetError

EXPECTED = "TARGET is module:factory or file.py:factory; the factory returns (model, args) or (model, args, loss_fn)"


@dataclass(frozen=True)
class Target:
    """What a factory returned.

    Attributes:
        model: the module or function.
        args: its example inputs.
        loss: from the model's output to a scalar; None: the output is the loss already.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    loss: Callable[[Any], Any] | None = None

    @property
    def step(self) -> Callable[..., Any]:
        """The model with its loss, of the same arguments; their names are the model's, for reports."""
        model, loss = self.model, self.loss
        if loss is None:
            return model

        def run(*args: Any) -> Any:
            return loss(model(*args))

        run.__signature__ = inspect.signature(getattr(model, "forward", model))  # type: ignore[attr-defined]
        return run


def load(spec: str) -> Target:
    """Imports the module or file, and calls the factory.

    Raises:
        TargetError: no such file, module or factory; the factory raises, or returns something else.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise TargetError(f"{spec!r} names no factory. {EXPECTED}")
    module = _import_file(place) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__
        ]
        raise TargetError(f"{place} has no function {name!r}; it has {', '.join(names) or 'no functions'}")
    try:
        made = factory()
    except Exception as error:
        raise TargetError(f"{spec} raised {type(error).__name__}: {error}") from error
    return _checked(spec, made)


def _import_file(place: str) -> ModuleType:
    path = pathlib.Path(place)
    if not path.is_file():
        raise TargetError(f"no such file: {place}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))  # as python itself does for a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TargetError(f"{place} could not be imported: {type(error).__name__}: {error}") from error
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise TargetError(f"no module named {name!r} here; a file is named with its .py") from error
        raise TargetError(f"{name} could not be imported: {error}") from error
    except Exception as error:
        raise TargetError(f"{name} could not be imported: {type(error).__name__}: {error}") from error


def _checked(spec: str, made: Any) -> Target:
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not callable(made[0]):
        raise TargetError(f"{spec} returned {type(made).__name__}. {EXPECTED}")
    model, args, *rest = made
    if not isinstance(args, (tuple, list)):
        args = (args,)
    if rest and rest[0] is not None and not callable(rest[0]):
        raise TargetError(f"{spec} returned a loss of type {type(rest[0]).__name__}: expected a function")
    return Target(model, tuple(args), rest[0] if rest else None)
