"""The largest batch that fits: solved on expressions, checked against real steps."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxapprox
from fxapprox import BatchFit, DoesNotFit, FxApproxError, OptionError
from fxapprox.amounts import parse_bytes
from fxapprox.cli import app
from fxapprox.demo.model import preact_resnet
from fxapprox.frontend.target import Target
from fxapprox.measure.fit.largest import FIRST, Affine, Batch, last_within, sizes_of
from fxapprox.measure.fit.resize import resized
from fxapprox.measure.memory import peak_bytes

MIB = 2**20


class Perceptron(nn.Module):
    """(N, 32) to a loss; deep enough for activations to outweigh temporaries."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


class Unrolled(Perceptron):
    """Python branches on every batch: no symbolic one survives."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().sum() / {int(n): n for n in (len(x),)}[len(x)]


def rows(batch: int) -> Tensor:
    return torch.randn(batch, 32)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GiB", 8 * 2**30), ("512 MiB", 512 * MIB), ("2GB", 2 * 10**9), ("1.5kib", 1536), ("7", 7), ("7b", 7), (9, 9)],
)
def test_amounts_of_memory(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "8 gallons", "-1GiB", "1e3", 0, -5, 0.5, None, True])
def test_what_is_no_amount(text: object) -> None:
    with pytest.raises(OptionError, match=r'memory=.*such as "8GiB"'):
        parse_bytes(text)  # type: ignore[arg-type]


def test_a_part_of_a_byte_is_no_amount() -> None:
    with pytest.raises(OptionError, match=r'memory="?\W?0\.1b.*whole number of bytes, or a unit, as in "0\.1GiB"'):
        parse_bytes("0.1b")


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**12))
def test_search_finds_the_largest(slope: int, offset: int, memory: int) -> None:
    found = last_within(lambda batch: slope * batch + offset, memory)
    assert found == max(0, (memory - offset) // slope)


def test_sizes_as_they_depend_on_the_batch() -> None:
    def build(n: int) -> Batch:
        return Batch(len, (torch.zeros(n, 3), {"mask": torch.zeros(2, 3 * n + 1)}), (torch.zeros(4),))

    images, mask, target = sizes_of(build(FIRST), build(2 * FIRST))
    assert images.sizes == (Affine(1, 0), Affine(0, 3))
    assert mask.sizes == (Affine(0, 2), Affine(3, 1))
    assert target.nbytes_at(99) == 16
    assert mask.nbytes_at(5) == 2 * 16 * 4


@pytest.mark.parametrize("bits", [None, 4])
def test_what_is_found_is_what_the_plan_predicts(bits: int | None) -> None:
    model = Perceptron()
    found = fxapprox.max_batch(model, rows, "2MiB", bits=bits)
    report = fxapprox.explain(model, rows(FIRST), dynamic=True, bits=bits)
    (weights, image) = sum(p.nbytes for p in model.parameters()), rows(1).nbytes
    assert found.alive_bytes == weights + found.batch * image
    assert found.peak_bytes == found.alive_bytes + report.at(found.batch).peak_bytes <= 2 * MIB
    assert found.next_peak_bytes == found.alive_bytes + image + report.at(found.batch + 1).peak_bytes > 2 * MIB
    assert found.traced == (FIRST,)
    assert not found.fixed_because
    assert str(found).startswith(f"batch {found.batch}: ")


def test_fewer_bits_and_less_state_make_room_for_more() -> None:
    def batch(**given: object) -> int:
        return fxapprox.max_batch(Perceptron(), rows, memory="4MiB", **given).batch  # type: ignore[arg-type]

    assert batch(bits=None) < batch(bits=8) < batch(bits=4)
    assert (
        batch(bits=4, optimizer_bytes_per_parameter=8) < batch(bits=4, optimizer_bytes_per_parameter=4) < batch(bits=4)
    )


def test_a_fixed_batch_is_traced_at_each_that_is_looked_at() -> None:
    found = fxapprox.max_batch(Unrolled(), rows, "400KiB", bits=8)
    assert found.fixed_because
    assert {found.batch, found.batch + 1} <= set(found.traced)
    assert found.peak_bytes <= 400 * 1024 < found.next_peak_bytes
    assert "traced at each of" in str(found)


def test_convolutions_below_sixteen_have_a_graph_of_their_own() -> None:
    model = preact_resnet(8)
    found = fxapprox.max_batch(model, lambda n: torch.randn(n, 3, 32, 32), 5 * MIB, bits=None)
    assert 1 < found.batch < FIRST
    assert len(found.traced) > 1
    assert not found.fixed_because


def test_too_little_memory_says_what_one_example_needs() -> None:
    with pytest.raises(
        DoesNotFit, match=r"1\.0 KiB is too little: batch 1 needs .* KiB of it for parameters"
    ) as caught:
        fxapprox.max_batch(Perceptron(), rows, "1KiB")
    found = fxapprox.max_batch(Perceptron(), rows, caught.value.needed)
    assert found.batch >= 1, "graphs for more than one are others, and may need less"
    assert found.peak_bytes <= caught.value.needed


def test_arguments_and_others_stay_as_they_are() -> None:
    x = torch.randn(FIRST, 32)
    fxapprox.max_batch(Perceptron(), lambda n: x if n == FIRST else rows(n), "2MiB")
    assert not x.__dict__, "no mark of Dynamo's is left"


def fails(_: int) -> Tensor:
    raise ValueError("no such file")


@pytest.mark.parametrize(
    ("make_batch", "error", "says"),
    [
        (fails, FxApproxError, r"make_batch\(16\) raised ValueError: no such file"),
        (lambda n: n, OptionError, r"make_batch\(16\) returned int: expected a tensor"),
        (lambda _: rows(4), OptionError, "same sizes: nothing to solve for"),
        (lambda n: rows(n // 3), OptionError, "not in proportion"),
        (lambda n: tuple(rows(n) for _ in range(n)), OptionError, "differ in more than sizes"),
        (lambda n: torch.randn(n, 5), FxApproxError, "could not be traced at batch 16"),
    ],
)
def test_unusable_batches(make_batch, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        fxapprox.max_batch(Perceptron(), make_batch, "1GiB")


@pytest.mark.parametrize(
    ("given", "says"), [({"bitz": 4}, "did you mean 'bits'"), ({"optimizer_bytes_per_parameter": -1}, "0 or more")]
)
def test_unusable_options(given: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        fxapprox.max_batch(Perceptron(), rows, "1GiB", **given)


def real_peak(model: nn.Module, x: Tensor, bits: int | None) -> int:
    """Of a second step, beyond what is alive."""
    torch.compiler.reset()
    run = fxapprox.compile(model, bits=bits, dynamic=False, strict=True)
    run(x).backward()
    model.zero_grad(set_to_none=True)
    gc.collect()
    return peak_bytes(lambda: run(x).backward()).peak


@pytest.mark.inductor
@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, 4])
def test_a_real_step_with_what_was_found_stays_within_the_memory(bits: int | None) -> None:
    model, limit = Perceptron(), 16 * MIB
    found = fxapprox.max_batch(model, rows, limit, bits=bits)

    def needed(batch: int) -> int:
        x = rows(batch)
        return sum(p.nbytes for p in model.parameters()) + x.nbytes + real_peak(model, x, bits)

    assert needed(found.batch) <= limit
    if bits is None:  # with codes, Inductor fuses more at some batches than the prediction has it
        assert limit < needed(int(1.25 * found.batch))


def test_targets_in_the_loss_change_with_the_batch() -> None:
    labels, weights = torch.arange(4), torch.ones(3)
    target = Target(
        Perceptron(), (torch.zeros(4, 32, requires_grad=True), "mean"), lambda out: (out[labels] * weights).sum()
    )
    batch = resized(target, 6)
    x, mode = batch.args
    assert x.shape == (6, 32)
    assert x.requires_grad
    assert mode == "mean"
    assert [t.tolist() for t in batch.others] == [[0, 1, 2, 3, 0, 1], [1, 1, 1]]


def test_channels_last_images_stay_so() -> None:
    x = torch.zeros(4, 3, 8, 8).to(memory_format=torch.channels_last)
    (made,) = resized(Target(nn.Identity(), (x,)), 6).args
    assert made.is_contiguous(memory_format=torch.channels_last)


FACTORY = """
import torch
from torch import nn
from torch.nn import functional as F

def make():
    labels = torch.zeros(4, dtype=torch.int64)
    layers = [nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(6)]
    return nn.Sequential(*layers), (torch.randn(4, 8),), lambda out: F.cross_entropy(out, labels)

def scalar():
    return nn.Linear(8, 8), (torch.tensor(3.0),)
"""


def run_cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *args: str) -> int:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.py").write_text(FACTORY)
    monkeypatch.setattr(sys, "argv", ["fxapprox", "fit", *args])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    return int(stopped.value.code or 0)


def test_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, tmp_path, "made.py:make", "--memory", "1MiB", "--optimizer-bytes", "8") == 0
    out = capsys.readouterr().out
    found = {line.split("│")[1].strip(): int(line.split("│")[2]) for line in out.splitlines() if line.startswith("│")}
    assert list(found)[:4] == ["torch.compile", "exact mode", "8 bits", "4 bits"]
    assert 0 < found["torch.compile"] <= found["exact mode"] < found["8 bits"] <= found["4 bits"]


def test_table_of_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, tmp_path, "made.py:make", "--memory", "1KiB") == 0
    assert "one more needs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [(("made.py:make", "--memory", "much"), "--memory='much': expected an amount"),
     (("made.py:scalar", "--memory", "1GiB"), "first dimension of the first tensor")],
)  # fmt: skip
def test_command_line_errors(
    args: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run_cli(monkeypatch, tmp_path, *args) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_result_is_one_line() -> None:
    assert (
        str(BatchFit(12, 3 * MIB, 5 * MIB, MIB, 4 * MIB, (16,)))
        == "batch 12: 3.0 MiB of 4.0 MiB; batch 13 needs 5.0 MiB"
    )
