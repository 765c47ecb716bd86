"""Plans and sensitivities in files; a compiled model takes them up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox import FxApproxError, InvalidPlan, OptionError, SavedPlan, Sensitivities
from fxapprox.codecs import Cast, Codec, Exact, Group, Integer, Mask, Standard, Threshold, Zero
from fxapprox.plan_file import SavedEntry
from tests import models
from tests.training import step

CODECS = [
    Exact(), Mask(), Integer(-1, 3), Group(2, "stochastic"), Group(8, uniform=True), Threshold(4), Zero(8), Standard(3),
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


def test_a_model_takes_up_its_plan(one_thread: None, tmp_path: Path) -> None:
    case = models.gpt2()
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
    other = models.gpt2(layers=1)
    with pytest.raises(InvalidPlan, match="the graph has no value"):
        step(other, fxapprox.compile(other.model, plan=tmp_path / "plan.json", lowering="eager"))


def test_a_plan_changed_by_hand_cannot_undercut_a_class(tmp_path: Path) -> None:
    case = models.gpt2()
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
