"""Options: what is accepted, and how a mistake is reported."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxapprox
from fxapprox import Activation, OptionError, Options, SavedPlan, Sensitivities
from fxapprox.codecs import Codec, Group
from fxapprox.files.plan_file import SavedEntry
from fxapprox.frontend.cache_key import cache_key
from fxapprox.options import NAMES, OPTIONS, OptionKeywords, from_environment, table

ROOT = Path(__file__).resolve().parents[1]


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
        ("rounding", "up"), ("rounding", None), ("rounding", ["nearest"]), ("min_bytes", -1), ("min_bytes", True),
        ("min_bytes", "0"), ("min_bytes", float("nan")), ("bits", 8.0), ("bits", [8]), ("bits", np.array([8, 4])),
        ("bits", torch.tensor(8)), ("bits", "4\0"), ("bits", {"*": [4]}), ("bits", {"*": {"*": 4}}), ("bits", {(): 4}),
        ("bits", {"*": True}), ("average_bits", float("nan")), ("average_bits", np.ones(3)),
        ("average_bits", 10**400), ("average_bits", Fraction(7, 2)), ("sensitivities", 3), ("plan", b"plan.json"),
        ("checkpoint", float("nan")), ("checkpoint", np.ones(2)), ("checkpoint", 10**30), ("checkpoint", {}),
        ("checkpoint_bits", 8.0), ("checkpoint_bits", np.array([8])), ("checkpoint_bits", False),
        ("memory_budget", float("inf")), ("memory_budget", float("nan")), ("memory_budget", np.ones(2)),
        ("memory_budget", {}), ("memory_budget", torch.tensor(0.5)), ("strict", None), ("strict", np.bool_(True)),
        ("lowering", np.array(["eager"])), ("lowering", True), ("policy", "uniform"),
        ("min_bytes", 1.5), ("policy", 3), ("lowering", "gpu"), ("strict", 1),
    ],
)  # fmt: skip
def test_bad_values_name_the_option_and_what_is_expected(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=rf"{name}.*=.*expected") as caught:
        Options.parse({name: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["bits", "checkpoint", "memory_budget", "average_bits", "checkpoint_bits"])
def test_numbers_too_long_to_be_written(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}=a value of type int: expected"):
        Options.parse({name: 10**5000})


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


@pytest.mark.parametrize(
    "budget",
    [
        "many",
        "3 elephants",
        "-1MiB",
        "",
        "1.5",
        "0.3",
        "1.5B",
        "9" * 400 + "GiB",
        "9" * 5000,
        "0.1B",
        "1e3GiB",
        "nan",
        "inf",
        "2GiB\0",
        "1" * 30 + "TiB",
        "0GiB",
        "\N{ARABIC-INDIC DIGIT THREE}GiB",
    ],
)
def test_a_budget_that_is_no_amount(budget: str) -> None:
    with pytest.raises(OptionError, match="memory_budget"):
        Options(memory_budget=budget)


def test_a_fraction_in_place_of_an_amount_is_told_what_to_write() -> None:
    with pytest.raises(OptionError, match=r'unit, as in "1.5GiB", or a fraction as a number, such as 0.3'):
        Options(memory_budget="1.5")
    assert Options(memory_budget="1.5GiB") != Options(memory_budget="1GiB")


@pytest.mark.parametrize("given", [{3: 4}, {None: 4}, [("bits", 4)], "bits", 3, {"bits": 4, b"plan": 3}])
def test_names_of_options_are_strings(given: Any) -> None:
    with pytest.raises(OptionError, match="expected a mapping from names"):
        Options.parse(given)
    with pytest.raises(OptionError, match="expected a mapping from names"):
        fxapprox.compile(torch.nn.Linear(2, 2), options=given)


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"bits": np.int64(4), "average_bits": np.float32(3.5), "checkpoint": np.int32(2),
             "rounding": np.str_("nearest"), "min_bytes": np.uint8(7), "checkpoint_bits": np.int8(8)}  # fmt: skip
    options = Options.parse(given)
    assert options == Options(bits=4, average_bits=3.5, checkpoint=2, min_bytes=7, checkpoint_bits=8)
    assert all(type(getattr(options, name)) in (int, float, str) for name in given)
    assert Options(bits={np.str_("*"): np.int64(4)}).bits == {"*": 4}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("given", "says"),
    [({"average_bits": 3}, 'average_bits= has no effect: give it with bits="auto"'),
     ({"sensitivities": Sensitivities(())}, 'sensitivities= has no effect: give them with bits="auto"'),
     ({"bits": None, "rounding": "stochastic"}, "rounding= has no effect: bits=None"),
     ({"bits": None, "policy": lambda value: None}, "policy= has no effect: bits=None"),
     ({"plan": SavedPlan(()), "bits": 4}, "bits= has no effect: what plan= holds")],
)  # fmt: skip
def test_options_without_their_partner_are_told(given: dict[str, Any], says: str) -> None:
    with pytest.warns(UserWarning, match=says):
        fxapprox.compile(torch.nn.Linear(2, 2), **given)


def test_options_with_their_partner_are_not() -> None:
    for given in ({"bits": "auto", "average_bits": 3, "sensitivities": Sensitivities(())}, {"rounding": "stochastic"},
                  {"memory_budget": 0.5, "sensitivities": Sensitivities(())}, {"plan": SavedPlan(()), "min_bytes": 0},
                  {"bits": 8, "average_bits": 4.0}):  # fmt: skip
        Options.parse(given).warn_of_idle()


OTHERS: dict[str, Any] = {  # of each option, a value that is not the default
    "bits": {"*": 4}, "average_bits": 3.0, "sensitivities": Sensitivities(({"v": {8: 0.1}},)),
    "plan": SavedPlan(((SavedEntry("v", "aten.mul", "torch.float32", Group(4), ()),),)), "checkpoint": "sqrt",
    "checkpoint_bits": 8, "memory_budget": 0.5, "slices": 4, "rounding": "stochastic", "min_bytes": 0, "policy": None,
    "error": 0.02,
    "lowering": "eager", "strict": True,
}  # fmt: skip


def test_the_cache_key_forgets_nothing() -> None:
    class Policy:
        uuid = "mine"

        def __call__(self, value: Activation) -> None:
            return None

    others = {**OTHERS, "policy": Policy()}
    keys = {name: cache_key(Options(**{name: others[name]})) for name in (field.name for field in fields(Options))}
    assert len({*keys.values(), cache_key(Options())}) == len(fields(Options)) + 1
    assert cache_key(Options(memory_budget=0.5, sensitivities=OTHERS["sensitivities"])) != keys["memory_budget"]
    assert cache_key(Options(bits={"*": 4})) == keys["bits"]


def test_nothing_is_cached_for_code_without_a_name() -> None:
    class Mine(Codec):
        bits = 4

    assert cache_key(Options(policy=lambda value: None)) is None
    assert cache_key(Options(plan=SavedPlan(((replace(OTHERS["plan"].graphs[0][0], codec=Mine()),),)))) is None


def test_a_pattern_that_begins_too_deep_is_completed() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model = nn.Sequential(OrderedDict(encoder=nn.Sequential(OrderedDict(layer=inner))))
    with pytest.raises(OptionError, match=r"matches 'layer\.\*'; close ones are 'encoder\.layer\.\*'$"):
        Options.parse({"bits": {"layer.*": 4}}).check_patterns(model)


def test_the_readme_shows_what_the_fields_say() -> None:
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8"), f"README's table of options is to be\n{table()}"


@pytest.mark.parametrize("documented", [Options, fxapprox.compile])
def test_docstrings_name_every_option(documented: Any) -> None:
    text = " ".join((inspect.getdoc(documented) or "").split())
    for name, option in OPTIONS.items():
        assert f" {name}: {option.help[:12]}".replace("`", "``") in text


def test_type_checkers_know_the_options() -> None:
    """A keyword has the type of its field, or a wider one: paths, and texts that only running the code tells."""
    keywords = OptionKeywords.__annotations__
    assert tuple(keywords) == NAMES
    for each in fields(Options):
        wide = set(keywords[each.name].__forward_arg__.split(" | "))
        assert wide >= set(str(each.type).split(" | "))
        assert wide <= {*str(each.type).split(" | "), "str", "os.PathLike[str]"}


@pytest.mark.parametrize(
    ("given", "text"),
    [({}, "bits=8"), ({"bits": None, "min_bytes": 0}, "bits=None"), ({"memory_budget": 0.5}, "memory_budget=0.5"),
     ({"bits": 4, "checkpoint": "sqrt", "lowering": "eager"}, "bits=4, checkpoint='sqrt', lowering='eager'")],
)  # fmt: skip
def test_the_text_says_what_was_asked_for(given: dict[str, Any], text: str) -> None:
    assert Options.parse(given).text == text


def test_the_environment_gives_options_where_the_call_gives_none() -> None:
    assert from_environment('{"bits": {"*": 4}, "lowering": "eager"}') == Options(bits={"*": 4}, lowering="eager")
    assert from_environment(" ") == Options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits=4", r"FXAPPROX_OPTIONS='bits=4': .*expected a JSON object of options, such as '{\"bits\": 4}'"),
        ("4", "FXAPPROX_OPTIONS='4': expected a JSON object"),
        ('{"bit": 4}', "in FXAPPROX_OPTIONS: unknown option 'bit'; did you mean 'bits'"),
        ('{"bits": 3}', "in FXAPPROX_OPTIONS: bits=3: expected"),
        ('{"plan": "nowhere.json"}', "in FXAPPROX_OPTIONS: .*nowhere.json"),
        ('{"sensitivities": "nowhere.json"}', "in FXAPPROX_OPTIONS: .*nowhere.json"),
        ('{"bits": 4, "bits": 8}', "the name 'bits' stands twice"),
        ('{"bits": NaN}', "NaN is no number"),
        ('{"average_bits": 1e999}', "too large"),
        ('{"min_bytes": ' + "9" * 5000 + "}", "expected a JSON object"),
        ("[" * 100000, "nested too deeply"),
        ('{"bits": [[8]]}', "in FXAPPROX_OPTIONS: bits="),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_mistake_in_the_environment(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXAPPROX_OPTIONS", text)
    with pytest.raises(fxapprox.FxApproxError, match=message):
        torch.compile(torch.nn.Linear(2, 2), backend="fxapprox")(torch.ones(2, 2))
