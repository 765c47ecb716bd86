"""Plans and sensitivities in files; a compiled model takes them up."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox import FxApproxError, InvalidPlan, OptionError, SavedPlan, Sensitivities
from fxapprox.codecs import Cast, Codec, Exact, Group, Integer, Mask, Standard, Threshold, Zero
from fxapprox.files.plan_file import SavedEntry
from tools.zoo import models
from tools.zoo.training import step

CODECS = [
    Exact(), Mask(), Integer(-1, 3), Group(2, "stochastic"), Group(8, uniform=True), Group(4, hollow=True),
    Threshold(4), Zero(8), Standard(3),
    Cast(torch.float16),
]  # fmt: skip


def test_every_codec_survives_the_file(tmp_path: Path) -> None:
    entries = tuple(SavedEntry(f"v{i}", "aten.mul", "torch.float32", c, ("gt",)) for i, c in enumerate(CODECS))
    plan = SavedPlan((entries, entries[:1]))
    plan.save(tmp_path / "plan.json")
    assert SavedPlan.load(tmp_path / "plan.json") == plan


def test_a_codec_of_the_users_own_is_refused(tmp_path: Path) -> None:
    class Mine(Codec):
        bits = 4

    with pytest.raises(FxApproxError, match="only name the codecs of fxapprox"):
        SavedPlan(((SavedEntry("v", "aten.mul", "torch.float32", Mine(), ()),),)).save(tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


def entry(**change: Any) -> SavedEntry:
    given = {"value": "v", "op": "aten.mul", "dtype": "torch.float32", "codec": Group(4), "carries": ("gt",), **change}
    return SavedEntry(**given)


@pytest.mark.parametrize(
    "change",
    [{"value": 3}, {"value": ""}, {"op": None}, {"dtype": "float32"}, {"dtype": "torch.nn"}, {"dtype": torch.float32},
     {"codec": "Group"}, {"codec": Group}, {"carries": ["gt"]}, {"carries": "gt"}, {"carries": ("gt", "gt")},
     {"carries": (3,)}, {"carries": ("",)}],
)  # fmt: skip
def test_entries_check_themselves(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(FxApproxError, match=f"{name}=.*: expected"):
        entry(**change)


@pytest.mark.parametrize("graphs", [[], ([],), (3,), ((3,),), 3, None, ((entry(), entry()),)])
def test_plans_check_themselves(graphs: Any) -> None:
    with pytest.raises(FxApproxError, match=r"graphs.*: expected"):
        SavedPlan(graphs)


@pytest.mark.parametrize(
    "graphs",
    [[], ([],), ({"v": {}},), ({"v": {5: 0.1}},), ({"v": {"8": 0.1}},), ({"v": {8: -0.1}},), ({"v": {8: math.nan}},),
     ({"v": {8: math.inf}},), ({"v": {8: True}},), ({"v": {8: "0.1"}},), ({"": {8: 0.1}},), ({3: {8: 0.1}},),
     ({"v": {True: 0.1}},), ({"v": 3},), (3,)],
)  # fmt: skip
def test_sensitivities_check_themselves(graphs: Any) -> None:
    with pytest.raises(FxApproxError, match="where there should be"):
        Sensitivities(graphs)


def document(**change: Any) -> dict[str, Any]:
    """A plan's document with something changed in its only entry, in its codec, or around it."""
    codec = {"type": "Group", "bits": 4, "rounding": "nearest", "uniform": False, "skewed": False, "hollow": False,
             "channels_last": False}  # fmt: skip
    entry = {"value": "v", "op": "aten.mul", "dtype": "torch.float32", "codec": codec, "carries": []}
    whole = {"schema": 1, "torch": "2", "graphs": [[entry]]}
    for name, value in change.items():
        at = next(part for part in (codec, entry, whole, codec) if name in part or (part is codec and name == "new"))
        at[name] = value
    return whole


@pytest.mark.parametrize(
    ("change", "says"),
    [({"schema": 2}, "schema is 2: expected 1"), ({"schema": True}, "schema is true"),
     ({"schema": "1"}, "schema is '1'"),
     ({"torch": None}, "torch is null: expected a string"), ({"graphs": {}}, "graphs is an object: expected a list"),
     ({"graphs": [{}]}, r"graphs\[0\] is an object"), ({"graphs": [[3]]}, r"graphs\[0\]\[0\] is 3: expected an object"),
     ({"graphs": [[{}]]}, r"graphs\[0\]\[0\] has no field 'value'"),
     ({"value": 3}, r"graphs\[0\]\[0\].value is 3: expected a string"), ({"value": ""}, "value='': expected a name"),
     ({"dtype": "torch.nn"}, "dtype='torch.nn': expected one of torch's"), ({"carries": "gt"}, "carries is 'gt'"),
     ({"carries": [3]}, r"carries\[0\] is 3"), ({"carries": ["a", "a"]}, "expected names, each of them once"),
     ({"codec": []}, "codec is a list"), ({"codec": {}}, "codec is an object: expected a codec"),
     ({"type": "Codec"}, "type is 'Codec': expected one of Cast"), ({"type": "Carrier"}, "type is 'Carrier'"),
     ({"type": []}, "type is a list"), ({"type": "Mask"}, "has a field 'rounding': expected bits"),
     ({"bits": 5}, r"codec: Group\(bits=5\): expected 8, 4, 3 or 2"), ({"bits": -4}, "bits=-4"),
     ({"bits": True}, "is true"),
     ({"bits": 8.0}, "is 8.0: expected a whole number"), ({"bits": "8"}, "bits is '8'"),
     ({"bits": None}, "bits is null"),
     ({"rounding": "up"}, "rounding='up'"), ({"uniform": "false"}, "uniform is 'false': expected true or false"),
     ({"uniform": 0}, "uniform is 0"), ({"new": 1}, "has a field 'new'"),
     ({"codec": {"type": "Cast", "to": "nn"}}, "to is 'nn': expected the name of a dtype"),
     ({"codec": {"type": "Cast", "to": "int8"}}, r"Cast\(to=torch.int8\)"),
     ({"codec": {"type": "Cast", "to": "float8_e8m0fnu"}}, r"Cast\(to="),
     ({"codec": {"type": "Cast"}}, "no field 'to'"),
     ({"codec": {"type": "Integer", "low": 3, "high": 1}}, "expected the ends of a range"),
     ({"codec": {"type": "Integer", "low": 0, "high": 10**30}}, "expected the ends of a range"),
     ({"codec": {"type": "Mask", "bits": 2}}, r"Mask\(bits=2\): expected 1"),
     ({"codec": {"type": "Exact", "bits": 8}}, r"Exact\(bits=8\): expected None"),
     ({"graphs": document()["graphs"] + [document()["graphs"][0] * 2]}, "each value once")],
)  # fmt: skip
def test_a_document_is_told_where_it_is_wrong(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document()))
    SavedPlan.load(path)
    path.write_text(json.dumps(document(**change)))
    with pytest.raises(
        FxApproxError, match=f"plan.json holds no plan that SavedPlan.save wrote: .*{says}.*write it again"
    ):
        SavedPlan.load(path)


TEXTS = {
    "empty": b"", "blank": b" \n", "no UTF-8": b'{"schema": "\xff"}', "UTF-16": '{"schema": 1}'.encode("utf-16"),
    "deep": b"[" * 10**5 + b"]" * 10**5, "deep objects": b'{"schema":' * 10**5,
    "digits": b'{"schema": ' + b"9" * 5000 + b"}",
    "infinite": b'{"schema": 1e999}', "NaN": b'{"schema": NaN}', "Infinity": b'{"schema": -Infinity}',
    "twice": b'{"schema": 1, "schema": 1}', "truncated": b'{"schema": 1, "gra', "two": b"{}{}", "null": b"null",
}  # fmt: skip


@pytest.mark.parametrize("kind", [SavedPlan, Sensitivities])
@pytest.mark.parametrize("name", TEXTS)
def test_files_that_hold_no_document(name: str, kind: type[SavedPlan] | type[Sensitivities], tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_bytes(TEXTS[name])
    with pytest.raises(FxApproxError, match=r"odd.json holds no"):
        kind.load(tmp_path / "odd.json")


@pytest.mark.parametrize("kind", [SavedPlan, Sensitivities])
def test_paths_that_cannot_be_read(kind: type[SavedPlan] | type[Sensitivities], tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop", tmp_path / "pipe"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    for path in (tmp_path, loop, pipe, "/dev/zero", "a\0b", "n" * 5000, "", 3, None, b"x"):
        with pytest.raises(FxApproxError, match="cannot read the"):
            kind.load(path)  # type: ignore[arg-type]
    if os.geteuid():  # root may read everything
        pipe.unlink()
        (tmp_path / "closed").touch(mode=0)
        with pytest.raises(FxApproxError, match="cannot read the"):
            kind.load(tmp_path / "closed")


@pytest.mark.parametrize("kind", [SavedPlan, Sensitivities])
def test_files_that_are_not_ours(kind: type[SavedPlan] | type[Sensitivities], tmp_path: Path) -> None:
    with pytest.raises(FxApproxError, match="cannot read"):
        kind.load(tmp_path / "absent.json")
    for text in ("not json", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "graphs": [[{}]]}'):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(FxApproxError, match="holds no"):
            kind.load(tmp_path / "odd.json")
    with pytest.raises(FxApproxError, match="cannot read the plan"):
        fxapprox.compile(nn.Linear(2, 2), plan=tmp_path / "absent.json")
    with pytest.raises(OptionError, match="the path of its file"):
        fxapprox.compile(nn.Linear(2, 2), plan=3)


def small(layers: int) -> models.Case:
    return models.gpt(layers=layers, width=32, sequence=32, batch=4, vocab=64)


def test_a_model_takes_up_its_plan(one_thread: None, tmp_path: Path) -> None:
    case = small(layers=2)
    measured = fxapprox.calibrate(case.model, case.loss, case.args, progress=False)
    first = fxapprox.compile(
        case.model, bits="auto", average_bits=5, sensitivities=measured, lowering="eager", strict=True
    )
    with pytest.raises(FxApproxError, match="has run"):
        fxapprox.save_plan(first, tmp_path / "plan.json")
    expected = step(case, first)
    fxapprox.save_plan(first, tmp_path / "plan.json")

    torch.compiler.reset()
    second = fxapprox.compile(case.model, plan=tmp_path / "plan.json", lowering="eager", strict=True)
    found = step(case, second)
    assert torch.equal(expected[1], found[1])
    assert fxapprox.reports(first)[0].saved_bytes == fxapprox.reports(second)[0].saved_bytes

    torch.compiler.reset()
    other = small(layers=1)
    with pytest.raises(InvalidPlan, match="the graph has no value"):
        step(other, fxapprox.compile(other.model, plan=tmp_path / "plan.json", lowering="eager"))


def test_a_plan_changed_by_hand_cannot_undercut_a_class(tmp_path: Path) -> None:
    case = small(layers=1)
    compiled = fxapprox.compile(case.model, bits=8, lowering="eager")
    step(case, compiled)
    fxapprox.save_plan(compiled, tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    for entry in content["graphs"][0]:
        entry["codec"].update({"bits": 2} if entry["codec"].get("bits") == 8 else {})
    (tmp_path / "plan.json").write_text(json.dumps(content))
    torch.compiler.reset()
    with pytest.raises(InvalidPlan, match="needs 4 bits"):
        step(case, fxapprox.compile(case.model, plan=str(tmp_path / "plan.json"), lowering="eager"))
