"""The zoo: its models keep their losses and gradients; the tool that runs them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fxapprox
from tools.zoo import __main__ as command
from tools.zoo import names, processes
from tools.zoo.measure import beside_eager, finite, rows_of, same_bits
from tools.zoo.models import Case, broken
from tools.zoo.models.generative import discriminator, generator, realness
from tools.zoo.models.zoo import OWN, ZOO
from tools.zoo.rows import BITS, Row, Setting, append, load, parse, settings
from tools.zoo.subject import SEED, cases_of
from tools.zoo.table import markdown
from tools.zoo.verdict import summary, wrong

QUICK = ("resnet", "efficientnet", "swin", "wavenet", "experts", "vae", "gan", "siren", "graph_network", "pointnet")
VARIED = (
    Setting("graph_attention", "eager", "fp32", "dynamic", "8"),
    Setting("mlp_mixer", "eager", "bf16", "static", "4"),
    Setting("recommender", "eager", "bf16", "dynamic", "exact"),
)
SHOWN = Row(
    Setting("unet", "eager", "fp32", "static", "8"), same_loss=True, same_buffers=True, gradient_error=0.01,
    worst=0.02, worst_of="head.bias", stored=25, exact_stored=50, baseline_stored=100, held=25, planned=25,
)  # fmt: skip


def check(setting: Setting) -> None:
    """The row of a setting has nothing wrong, and the loss of torch.compile."""
    (row,) = rows_of(ZOO[setting.model], [setting], rounds=0)
    assert not row.failed
    assert wrong(row) == []
    assert row.graphs


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", QUICK)
def test_a_model_keeps_its_loss_and_its_gradients(model: str) -> None:
    check(Setting(model, "eager", "fp32", "static", "8"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("setting", VARIED, ids=str)
def test_so_it_does_in_other_settings(setting: Setting) -> None:
    check(setting)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", OWN)
def test_every_model_keeps_its_loss_and_its_gradients(model: str) -> None:
    for row in rows_of(ZOO[model], settings([model], lowerings=["eager"]), rounds=0):
        assert not row.failed or row.blame == "torch.compile", row
        assert wrong(row) == [], row


@pytest.mark.parametrize("model", OWN)
def test_a_case_is_ready_to_train_and_its_weights_do_not_depend_on_the_batch(model: str) -> None:
    small, large = cases_of(ZOO[model])
    assert small.model.training
    assert all(torch.equal(a, b) for a, b in zip(small.model.parameters(), large.model.parameters(), strict=True))
    for a, b, at in zip(small.args, large.args, small.batched or [0] * len(small.args), strict=True):
        grown = [i for i in range(a.dim()) if a.shape[i] != b.shape[i]]
        assert grown == ([] if at is None else [at])


def gan_step(compiled: Callable[[nn.Module], Callable[..., torch.Tensor]]) -> list[torch.Tensor]:
    """The weights of generator and discriminator after two steps with an optimizer each."""
    torch.manual_seed(0)
    networks = generator(), discriminator()
    make, judge = map(compiled, networks)
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in networks]
    for _ in range(2):
        made = make(torch.randn(4, 16))
        real = realness(judge(torch.randn(4, 3, 16, 16)), True)
        (real + realness(judge(made.detach()), False)).backward()
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        realness(judge(made), True).backward()
        optimizers[0].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    return [p.detach() for network in networks for p in network.parameters()]


def test_a_gan_with_two_optimizers_trains_as_without_us() -> None:
    """The discriminator runs three times for two backward passes, one of them through the generator's outputs."""
    exact = gan_step(lambda network: fxapprox.compile(network, bits=None, lowering="eager"))
    plain = gan_step(lambda network: torch.compile(network, backend="aot_eager_decomp_partition"))
    for found, expected in zip(exact, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- the tool ------------------------------------------------------------------------------------


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [SHOWN, replace(SHOWN, setting=replace(SHOWN.setting, bits="4"), strange=("a",), warnings=("b",))]
    for row in rows:
        append(row, file)
    with file.open("a") as open_file:
        open_file.write('{"setting": {"mod')  # its writer was interrupted
    assert list(load(file).values()) == rows
    append(replace(SHOWN, stored=7), file)
    with pytest.raises(ValueError, match="line 3"):
        load(file)
    assert load(tmp_path / "absent") == {}


def test_a_row_of_an_older_version_is_refused_with_what_it_lacks() -> None:
    content = json.loads(SHOWN.to_json())
    del content["held"], content["worst"]
    with pytest.raises(ValueError, match="a row of an older version, without held, worst"):
        parse(json.dumps(content))


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"setting": {}}', "fused 3 kernels"])
def test_a_line_that_is_no_row_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse(line)


def test_losses_that_differ_are_set_beside_eager_pytorchs() -> None:
    setting, loss = Setting("siren", "eager", "fp32", "static", "8"), eager_loss("siren")
    assert beside_eager(ZOO["siren"], setting, loss, loss) == ""
    assert beside_eager(ZOO["siren"], setting, loss, loss * 1.0001) == (
        "from eager PyTorch's loss torch.compile's is 1e-04 off, ours 0e+00"
    )
    assert beside_eager(ZOO["siren"], setting, loss * 2, loss * 3) == ""


def eager_loss(name: str) -> Tensor:
    case = ZOO[name]()
    torch.manual_seed(SEED)
    return case.loss(case.model(*case.args)).detach()


def test_bits_of_losses_are_compared() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(nan, torch.ones(2))
    assert not same_bits(torch.ones(2), torch.ones(2).double())
    assert not same_bits(torch.zeros(2), -torch.zeros(2))
    assert finite(nan) is False
    assert finite(None) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"gradient_error": 0.06}, ["gradient error 6.00% > 0.05"]),
        ({"gradient_error": None}, []),
        ({"strange": ("head.weight",)}, ["head.weight"]),
        ({"worst": 0.2}, ["head.bias off by 20.0%"]),
        ({"worst": None}, []),
        ({"stored": 51, "held": 51, "planned": 51}, ["stores 51 bytes, the exact plan 50"]),
        ({"exact_stored": 101}, ["the exact plan stores 101 bytes, torch.compile 100"]),
        ({"planned": 24}, ["24 bytes reported, 25 held"]),
        ({"planned": None}, []),
        ({"fallbacks": ("node x",)}, ["a whole graph is stored as by torch.compile: node x"]),
        ({"same_buffers": False}, ["other buffers"]),
        ({"same_loss": False}, ["other loss"]),
        ({"recompiled": 1}, ["compiled anew"]),
        ({"recompiled": 1, "baseline_recompiled": 1}, []),
        ({"failed": "no", "blame": "fxapprox"}, ["failed (fxapprox)"]),
        ({"failed": "no", "blame": "torch.compile"}, []),
    ],
)
def test_what_is_wrong_with_a_row(changed: dict, words: list[str]) -> None:
    found = wrong(replace(SHOWN, **changed))
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_exact_mode_may_round_otherwise_in_inductor_only() -> None:
    exact = replace(SHOWN, setting=replace(SHOWN.setting, bits="exact"), gradient_error=1e-4)
    assert wrong(exact)
    assert not wrong(replace(exact, setting=replace(exact.setting, lowering="inductor")))


def test_the_table_has_every_row() -> None:
    inductor = replace(SHOWN, setting=replace(SHOWN.setting, lowering="inductor"), same_loss=False, loss_change=1e-7)
    failed = Row(replace(SHOWN.setting, bits="4"), failed="a | b", blame="fxapprox")
    lines = markdown([inductor, failed, SHOWN]).splitlines()
    rows = [line for line in lines if line.startswith("| unet")]
    assert {line.count("|") for line in rows} == {16}
    assert "failed (fxapprox): a / b" in rows[0]
    assert "| same | 1.00% | 2.00% | 0.25 | 0.50 |" in rows[1]
    assert "run operator by operator" in rows[2]
    assert "- unet, 4 bits, fp32, static, eager: failed (fxapprox)" in lines
    assert summary([SHOWN, failed])[1] == "loss bit-identical to torch.compile: 1 of 1 (100.0%)"


def test_models_are_chosen_by_parts_of_names_or_as_builders() -> None:
    assert names.chosen("siren,diffusion_u") == ["diffusion_unet", "siren"]
    assert names.chosen("tools.zoo.models.broken:raises") == ["tools.zoo.models.broken:raises"]
    assert names.chosen("") == list(ZOO)
    assert names.builder("tools.zoo.models.broken:raises") is broken.raises


def test_a_model_that_raises_is_a_row_and_nothing_is_run_twice(tmp_path: Path) -> None:
    out, table = tmp_path / "rows.jsonl", tmp_path / "zoo.md"
    arguments = ["--out", str(out), "--models", "tools.zoo.models.broken:raises,siren", "--lowering", "eager"]
    arguments += ["--precision", "fp32", "--batch", "dynamic", "--rounds", "0", "--table", str(table)]
    app = command.typer.Typer()
    app.command()(command.main)
    for _ in range(2):
        ran = CliRunner().invoke(app, [*arguments, "--bits", "8"])
        assert ran.exit_code == 0, ran.output
        assert len(out.read_text().splitlines()) == 2
    rows = load(out)
    failed = rows[Setting("tools.zoo.models.broken:raises", "eager", "fp32", "dynamic", "8")]
    assert (failed.blame, "no such weights" in failed.failed) == ("model", True)
    assert not wrong(rows[Setting("siren", "eager", "fp32", "dynamic", "8")])
    assert "no such weights" in table.read_text()


@pytest.mark.parametrize("option", ["--bits", "--precision", "--batch", "--lowering"])
def test_a_name_that_nobody_knows_is_refused(option: str) -> None:
    with pytest.raises(command.typer.BadParameter, match=r"'5': expected some of "):
        command.named(option, "5", BITS)


def test_a_process_that_dies_is_a_row_and_the_others_go_on() -> None:
    wanted = settings(["tools.zoo.models.broken:stops"], lowerings=["eager"], precisions=["fp32"], batches=["static"])
    rows = list(processes.rows_of_model(wanted[:2], 300, 0))
    assert [(row.setting.bits, row.blame) for row in rows] == [("exact", "process"), ("8", "process")]
    assert "SIGABRT" in rows[0].failed


def test_a_model_that_takes_too_long_is_a_row_for_each_setting() -> None:
    wanted = settings(["tools.zoo.models.broken:sleeps"], lowerings=["eager"], precisions=["fp32"])
    rows = list(processes.rows_of_model(wanted, 1, 0))
    assert [row.failed for row in rows] == ["not done after 1 s"] * len(wanted)


def test_a_case_without_a_batch_says_so() -> None:
    def build() -> Case:
        return broken.stops()

    with pytest.raises(ValueError, match="no argument batch"):
        cases_of(build)
