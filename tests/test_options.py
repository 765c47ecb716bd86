"""Options: what is accepted, and how a mistake is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxapprox
from fxapprox import OptionError, Options


@pytest.mark.parametrize(
    ("name", "value"),
    [("bits", 3), ("bits", True), ("bits", "4"), ("rounding", "up"), ("min_bytes", -1), ("min_bytes", 1.5),
     ("policy", 3), ("lowering", "gpu"), ("strict", 1)],
)  # fmt: skip
def test_bad_values_name_the_option_and_what_is_expected(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=rf"{name}=.*expected") as caught:
        Options.parse({name: value})
    assert isinstance(caught.value, ValueError)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean 'rounding'"):
        fxapprox.compile(torch.nn.Linear(2, 2), roundin="nearest")
    with pytest.raises(OptionError, match="did you mean 'max_autotune'"):
        fxapprox.compile(torch.nn.Linear(2, 2), options={"max_autotun": True})
    with pytest.raises(OptionError, match="mode="):
        fxapprox.compile(torch.nn.Linear(2, 2), mode="fastest")


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Options().bits = 4  # type: ignore[misc]
