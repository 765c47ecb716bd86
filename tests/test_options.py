"""Options: what is accepted, and how a mistake is reported."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox import OptionError, Options
from fxapprox.options import from_environment
from fxapprox.plan_file import SavedPlan


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", 3), ("bits", True), ("bits", "4"), ("bits", {}), ("bits", {"": 4}), ("bits", {4: 4}),
        ("bits", "automatic"),
        ("average_bits", 1), ("average_bits", "4"), ("sensitivities", {}), ("plan", 3),
        ("checkpoint", 0), ("checkpoint", "log"), ("checkpoint", True), ("checkpoint", 2.0), ("checkpoint", -0.5),
        ("average_bits", 33),
        ("checkpoint_bits", 2), ("checkpoint_bits", "8"), ("memory_budget", 0), ("memory_budget", 1.5),
        ("memory_budget", True), ("memory_budget", -0.5),
        ("rounding", "up"), ("min_bytes", -1), ("min_bytes", 1.5), ("policy", 3), ("lowering", "gpu"), ("strict", 1),
    ],
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


@pytest.mark.parametrize(
    ("module", "bits"),
    [("layers.0.attn", 8), ("layers.0.attn.qkv", 8), ("layers.3.mlp", 2), ("layers.3", 4), ("", 4), ("head", None)],
)
def test_the_most_specific_pattern_wins(module: str, bits: int | None) -> None:
    options = Options(bits={"*": 4, "layers.*.attn": 8, "layers.?.mlp": 2, "head": None})
    assert options.bits_of(module) == bits


def test_what_no_pattern_covers_gets_the_default() -> None:
    assert Options(bits={"head": 4}).bits_of("layers.0") == Options().bits


def test_a_bad_number_names_its_pattern() -> None:
    with pytest.raises(OptionError, match=r"bits\['head'\]=5: expected"):
        Options(bits={"head": 5})


def test_a_pattern_that_matches_nothing_is_an_error_with_close_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.add_module("attention", torch.nn.Linear(2, 2))
    with pytest.raises(OptionError, match="no module of the model matches 'attn'; close ones are 'attention'"):
        fxapprox.compile(model, bits={"attn": 4})
    with pytest.raises(OptionError, match="matches 'nowhere'"):
        fxapprox.explain(model, torch.ones(2, 2), bits={"nowhere": 4})


def test_the_callers_mapping_may_change() -> None:
    given: dict[str, int | None] = {"*": 4}
    options = Options(bits=given)
    given["*"] = 2
    assert options.bits_of("") == 4


@pytest.mark.parametrize("name", ["bits", "checkpoint", "plan"])
def test_a_budget_chooses_by_itself(name: str) -> None:
    given = {"bits": 4, "checkpoint": "sqrt", "plan": SavedPlan(())}
    with pytest.raises(OptionError, match=f"memory_budget chooses .* leave out {name}="):
        Options.parse({"memory_budget": 0.5, name: given[name]})
    assert Options(memory_budget=0.5, bits=None).bits is None


@pytest.mark.parametrize("budget", ["many", "3 elephants", "-1MiB"])
def test_a_budget_that_is_no_amount(budget: str) -> None:
    with pytest.raises(OptionError, match="memory_budget"):
        Options(memory_budget=budget)


def test_a_pattern_that_begins_too_deep_is_completed() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model = nn.Sequential(OrderedDict(encoder=nn.Sequential(OrderedDict(layer=inner))))
    with pytest.raises(OptionError, match=r"matches 'layer\.\*'; close ones are 'encoder\.layer\.\*'$"):
        Options.parse({"bits": {"layer.*": 4}}).check_patterns(model)


def test_the_environment_gives_options_where_the_call_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXAPPROX_OPTIONS", '{"bits": {"*": 4}, "lowering": "eager"}')
    assert from_environment() == Options(bits={"*": 4}, lowering="eager")
    monkeypatch.setenv("FXAPPROX_OPTIONS", " ")
    assert from_environment() == Options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits=4", r"FXAPPROX_OPTIONS='bits=4': .*expected a JSON object of options, such as '{\"bits\": 4}'"),
        ("4", "FXAPPROX_OPTIONS='4': expected a JSON object"),
        ('{"bit": 4}', "in FXAPPROX_OPTIONS: unknown option 'bit'; did you mean 'bits'"),
        ('{"bits": 3}', "in FXAPPROX_OPTIONS: bits=3: expected"),
        ('{"plan": "nowhere.json"}', "in FXAPPROX_OPTIONS: .*nowhere.json"),
    ],
)
def test_a_mistake_in_the_environment(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXAPPROX_OPTIONS", text)
    with pytest.raises(fxapprox.FxApproxError, match=message):
        torch.compile(torch.nn.Linear(2, 2), backend="fxapprox")(torch.ones(2, 2))
