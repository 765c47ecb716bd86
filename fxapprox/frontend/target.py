"""Loads a command line's TARGET, a factory that builds a model and its example inputs; puts its errors in a line."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor

from fxapprox import torch_adapter as adapter
from fxapprox.errors import FxApproxError, ModelError, TargetError
from fxapprox.frontend.checks import kind, no_gradient, wrong_arguments, wrong_loss_fn, wrong_model
from fxapprox.ir.source import described, is_users

WANTED = "(model, args) or (model, args, loss_fn)"
EXPECTED = f"TARGET is module:factory or file.py:factory; the factory returns {WANTED}"


@dataclass(frozen=True)
class Target:
    """What a factory returned.

    Attributes:
        model: the module or function.
        args: its example inputs.
        loss: from the model's output to a scalar; None: the output is the loss already.
        name: what the command line called it.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    loss: Callable[[Any], Any] | None = None
    name: str = ""

    @property
    def step(self) -> Callable[..., Any]:
        """The model with its loss, of the same arguments; their names are the model's, for reports.

        It raises TargetError where the loss is no scalar.
        """
        model, loss, prefix = self.model, self.loss, f"{self.name}: " if self.name else ""
        if loss is None:
            return model

        def run(*args: Any) -> Any:
            found = loss(model(*args))
            if not isinstance(found, Tensor) or found.numel() != 1:
                raise TargetError(f"{prefix}loss_fn returned {kind(found)}: expected a scalar tensor")
            return found

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
        raise TargetError(_no_factory(place, name, module))
    try:
        made = factory()
    except Exception as error:
        raise TargetError(f"{spec} raised {described(error)}") from error
    return _checked(spec, made)


@contextmanager
def running(target: Target) -> Iterator[None]:
    """Makes an error of the target's own code one line with the line that raised it; torch's account is left out."""
    try:
        with adapter.quiet():
            yield
    except ModelError as error:
        raise TargetError(f"{target.name}: {error}") from error
    except FxApproxError:
        raise
    except Exception as error:
        if not is_users(error):
            raise
        raise TargetError(f"{target.name}: the model failed with {described(error)}") from error


def nothing_stored(target: Target, breaks: str) -> TargetError:
    """The error for a model of which backward needs nothing; ``breaks``: the graph breaks in words, or ""."""
    found = f"{target.name}: nothing is stored for backward: no operator reads an activation again"
    return TargetError(f"{found}, or torch.compile does not capture it\n{breaks}" if breaks else found)


def _no_factory(place: str, name: str, module: ModuleType) -> str:
    own = [n for n, v in vars(module).items() if inspect.isfunction(v) and _is_factory(v, module)]
    near = difflib.get_close_matches(name, own, n=3) or own[:5]
    more = ", ..." if len(own) > len(near) else ""
    has = f"it has {', '.join(near)}{more}" if own else "it has no functions without arguments"
    if hasattr(module, name):
        return f"{name!r} in {place} is {kind(getattr(module, name))}, not a function; {has}"
    return f"{place} has no function {name!r}; {has}"


def _is_factory(function: FunctionType, module: ModuleType) -> bool:
    """Whether the module's own function can be called without arguments."""
    parameters = inspect.signature(function).parameters.values()
    needed = (p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return function.__module__ == module.__name__ and not any(needed)


def _import_file(place: str) -> ModuleType:
    path = pathlib.Path(place)
    if not path.is_file():
        raise TargetError(f"no such file: {place}")
    spec = importlib.util.spec_from_file_location(_unused_name(path.stem), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Dynamo, pickle and dataclasses look up what the file defines
    sys.path.insert(0, str(path.resolve().parent))  # as python itself does for a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TargetError(f"{place} could not be imported: {described(error)}") from error
    return module


def _unused_name(stem: str) -> str:
    """A module name that no other module goes by: a file may be called as one that is imported already."""
    return next(name for n in count() if (name := f"{stem}_{n}" if n else stem) not in sys.modules)


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise TargetError(f"no module named {name!r} here; a file is named with its .py") from error
        raise TargetError(f"{name} could not be imported: {described(error)}") from error
    except Exception as error:
        raise TargetError(f"{name} could not be imported: {described(error)}") from error


def _checked(spec: str, made: Any) -> Target:
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        found = f"a tuple of {len(made)}" if isinstance(made, tuple) else kind(made)
        raise TargetError(f"{spec} returned {found}: expected {WANTED}")
    model, args, loss = made if len(made) == 3 else (*made, None)
    if wrong := wrong_model(model) or wrong_arguments(model, args):
        raise TargetError(f"{spec} returned {wrong}")
    if loss is not None and (wrong := wrong_loss_fn(loss)):
        raise TargetError(f"{spec} returned {wrong}")
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    if nothing := no_gradient(model, args):
        raise TargetError(f"{spec}: {nothing}: there is nothing to store for backward")
    return Target(model, args, loss, spec)
