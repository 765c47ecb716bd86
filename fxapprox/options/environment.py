"""Options from the environment, for those who can name a backend and give it nothing."""

from __future__ import annotations

import os

from fxapprox.errors import FxApproxError, OptionError, shown
from fxapprox.options.record import Options
from fxapprox.options.values import require

ENVIRONMENT = "FXAPPROX_OPTIONS"
_JSON = """a JSON object of options, such as '{"bits": 4}'"""


def from_environment(text: str | None = None) -> Options:
    """The options in the variable FXAPPROX_OPTIONS, a JSON object, as in '{"bits": 4}'; the defaults if it is empty.

    For those who have torch.compile called for them and can name a backend, but give it no options.

    Args:
        text: the variable's value; None: what it is now.

    Raises:
        OptionError: it is no JSON object, a name in it is unknown, or a value invalid.
    """
    from fxapprox.files.json_file import loads

    text = (os.environ.get(ENVIRONMENT, "") if text is None else text).strip() or "{}"
    try:
        given = loads(text)
    except ValueError as error:
        raise OptionError(f"{ENVIRONMENT}={shown(text)}: {error}; expected {_JSON}") from None
    require(isinstance(given, dict), ENVIRONMENT, text, _JSON)
    try:
        return Options.parse(given)
    except FxApproxError as error:
        raise type(error)(f"in {ENVIRONMENT}: {error}") from None
