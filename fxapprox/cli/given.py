"""Options of fxapprox's on the command line, as their fields describe them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from fxapprox.options import DEFAULTS, OPTIONS

GIVEN = "given"  # the parameter of a command in whose place its options stand


def takes(*names: str, **defaults: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these options, in place of its parameter ``given``: {name: value}, what was typed, parsed.

    Args:
        defaults: what stands for an option that is not typed, if it is not the option's own default.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()

        def parameters() -> Iterator[inspect.Parameter]:
            for parameter in own:
                if parameter.name == GIVEN:
                    yield from (_parameter(name, defaults.get(name)) for name in names)
                else:
                    yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

        @functools.wraps(command)
        def run(**typed: Any) -> None:
            given = {name: OPTIONS[name].parse(typed.pop(name)) for name in names}
            command(**typed, given=given)

        signature = inspect.Signature([*parameters()])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return run

    return decorated


def _parameter(name: str, default: str | None) -> inspect.Parameter:
    """An option as typer takes it: a number where it is one, else text."""
    option, usual = OPTIONS[name], DEFAULTS[name]
    kind = option.parse if option.parse in (int, float) else str
    if default is None and kind is str:
        default = option.blank if usual is None else str(usual)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=usual if default is None else default,
        annotation=Annotated[kind, typer.Option(help=option.typed)],
    )  # fmt: skip
