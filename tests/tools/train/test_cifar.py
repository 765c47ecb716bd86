"""The CIFAR-10 training tool, on a handful of invented images in both layouts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tools.train.__main__ as command
from tools.train import cifar, runs
from tools.train import data as cifar10

TRAIN, TEST = 20, 10
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (TRAIN + TEST, 3, 32, 32), dtype=np.uint8)
LABELS = RNG.integers(0, 10, TRAIN + TEST)


def write_batches(root: Path) -> Path:
    """torchvision's layout: five training batches of four images each, and a test batch."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    parts = [(f"data_batch_{i + 1}", slice(4 * i, 4 * i + 4)) for i in range(5)]
    for name, part in [*parts, ("test_batch", slice(TRAIN, None))]:
        batch = {"data": IMAGES[part].reshape(-1, 3072), "labels": LABELS[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return root


def write_sheets(root: Path) -> Path:
    """Lossless sheets of two rows by five tiles: two for training, one for testing."""
    root.mkdir(parents=True)
    for name, start in (("train_00", 0), ("train_01", 10), ("test_00", 20)):
        tiles = IMAGES[start : start + 10].reshape(2, 5, 3, 32, 32)
        sheet = tiles.transpose(0, 3, 1, 4, 2).reshape(64, 160, 3)
        Image.fromarray(sheet).save(root / f"{name}.webp", lossless=True)
    np.savez(root / "labels.npz", y_train=LABELS[:TRAIN], y_test=LABELS[TRAIN:])
    return root


LAYOUTS = [write_batches, write_sheets]


def invoke(data: Path, out: Path, *more: str):
    options = f"--data {data} --out {out} --depth 8 --epochs 2 --batch 8 --lowering eager --modes plain"
    return CliRunner().invoke(command.app, ["cifar", *options.split(), *more])


def epochs(path: Path) -> list[dict]:
    """The epochs of a run's JSON file, without their times."""
    records = json.loads(path.read_text())["epochs"]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("write", LAYOUTS)
def test_both_layouts_hold_the_same_images(write, tmp_path: Path) -> None:
    train, test = cifar10.load(write(tmp_path / "data"))
    assert np.array_equal(train.images, IMAGES[:TRAIN])
    assert np.array_equal(train.labels, LABELS[:TRAIN])
    assert np.array_equal(test.images, IMAGES[TRAIN:])
    assert np.array_equal(test.labels, LABELS[TRAIN:])


def test_the_batches_folder_itself_is_accepted(tmp_path: Path) -> None:
    train, _ = cifar10.load(write_batches(tmp_path) / "cifar-10-batches-py")
    assert len(train) == TRAIN


def test_arrays_pickled_by_an_older_numpy(tmp_path: Path) -> None:
    path = write_batches(tmp_path) / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(cifar10.load(tmp_path)[1]) == TEST


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3", None, "data_batch_3: missing"),
        ("data_batch_3", b"\x80\x04broken", "data_batch_3: damaged"),
        ("test_batch", pickle.dumps({"labels": [1]}), "test_batch: damaged.*'data'"),
        ("test_batch", pickle.dumps({"data": np.zeros((1, 5), np.uint8), "labels": [1]}), "test_batch.*3072"),
        ("test_batch", pickle.dumps({"data": print, "labels": [1]}), "asks for builtins.print"),
    ],
)
def test_damaged_batches(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = write_batches(tmp_path) / "cifar-10-batches-py" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(cifar10.DataError, match=message):
        cifar10.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_01.webp", None, "10 images but 20 labels"),
        ("train_01.webp", b"RIFFnothing", "train_01.webp: damaged"),
        ("labels.npz", None, "labels.npz: missing"),
        ("labels.npz", b"PKnothing", "labels.npz: damaged"),
    ],
)
def test_damaged_sheets(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = write_sheets(tmp_path / "data") / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(cifar10.DataError, match=message):
        cifar10.load(tmp_path / "data")


def test_missing_data_is_a_short_error(tmp_path: Path) -> None:
    result = invoke(tmp_path / "nowhere", tmp_path / "out")
    assert result.exit_code == 1
    assert "nowhere: no such directory" in result.output
    (tmp_path / "empty").mkdir()
    result = invoke(tmp_path / "empty", tmp_path / "out")
    assert "neither cifar-10-batches-py/ nor labels.npz" in result.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--modes", "exact,3", "3: choose from"),
        ("--seeds", "a", "integers"),
        ("--depth", "9", "6n+2"),
        ("--device", "x", "--device"),
    ],
)
def test_invalid_options(option: str, value: str, message: str, tmp_path: Path) -> None:
    result = invoke(write_sheets(tmp_path / "data"), tmp_path / "out", option, value)
    assert result.exit_code == 2
    assert message in result.output


def test_a_run_leaves_record_checkpoint_table_and_curves(tmp_path: Path) -> None:
    data, out = write_sheets(tmp_path / "data"), tmp_path / "out"
    result = invoke(data, out, "--modes", "plain,4")
    assert result.exit_code == 0, result.output
    record = json.loads((out / "4-seed0.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert 0 < record["stored_bytes"] < json.loads((out / "plain-seed0.json").read_text())["stored_bytes"]
    assert record["recipe"]["block"] == "basic"
    assert {path.name for path in out.glob("*.pt")} == {"4-seed0.pt", "plain-seed0.pt"}
    assert not list(out.glob("*.partial"))
    assert "| 4 bits | 1 | 2 |" in (out / "table.md").read_text()
    with Image.open(out / "curves.png") as image:
        assert image.width > 1000


def test_an_interrupted_run_continues_to_the_same_result(tmp_path: Path, monkeypatch) -> None:
    data = write_sheets(tmp_path / "data")
    assert invoke(data, tmp_path / "whole").exit_code == 0
    evaluate, calls = cifar.evaluate, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cifar, "evaluate", interrupted)
        assert invoke(data, tmp_path / "parts").exit_code != 0
    assert len(epochs(tmp_path / "parts" / "plain-seed0.json")) == 1
    assert invoke(data, tmp_path / "parts").exit_code == 0
    assert epochs(tmp_path / "parts" / "plain-seed0.json") == epochs(tmp_path / "whole" / "plain-seed0.json")

    again = invoke(tmp_path / "gone", tmp_path / "parts")
    assert again.exit_code == 0
    assert "1 of 1 runs are finished" in again.output
    changed = invoke(data, tmp_path / "parts", "--batch", "4")
    assert changed.exit_code == 1
    assert "batch 8, not 4" in changed.output


def test_batches_depend_on_seed_and_epoch_only() -> None:
    recipe = runs.Recipe(8, "basic", 1, 8, None, 0.1, 0.9, 2e-4, "eager")
    train = cifar10.Split(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))

    def batches(mode: str, seed: int, epoch: int) -> torch.Tensor:
        run = runs.Run(mode, seed, recipe)
        return torch.stack([images for images, _ in cifar.augmented_batches(train, run, epoch)])

    first = batches("plain", 0, 0)
    assert first.shape == (3, 8, 3, 32, 32)
    assert torch.equal(first, batches("4", 0, 0))
    assert not torch.equal(first, batches("plain", 1, 0))
    assert not torch.equal(first, batches("plain", 0, 1))


def test_crop_and_flip() -> None:
    images = torch.arange(2 * 3 * 32 * 32.0).view(2, 3, 32, 32)
    moved = cifar.crop_and_flip(images, torch.tensor([[4, 4], [0, 8]]), torch.tensor([True, False]))
    assert torch.equal(moved[0], images[0].flip(2))
    assert torch.equal(moved[1, :, 4:, :28], images[1, :, :28, 4:])
    assert not moved[1, :, :4].any()
    assert not moved[1, :, :, 28:].any()
