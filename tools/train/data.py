"""CIFAR-10 from disk, in either of two layouts; nothing is downloaded.

- torchvision's: DIR/cifar-10-batches-py/{data_batch_1..5,test_batch}, or DIR is that folder. Each file
  is a pickled dict with `data`, (N, 3072) uint8, and `labels`.
- image sheets: DIR/train_*.webp and DIR/test_*.webp, each a grid of 32x32 tiles read row by row, sheets in
  the order of their names; DIR/labels.npz holds `y_train` and `y_test`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 32
CLASSES = 10
CHANNELS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # mean and standard deviation of R, G, B
BATCHES = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)
IN_PICKLES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class DataError(ValueError):
    """The data set is missing, incomplete or damaged; the message names the file."""


@dataclass(frozen=True)
class Split:
    """Images and labels of the training or the test set.

    Attributes:
        images: (N, 3, 32, 32) uint8.
        labels: (N,) int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first `count` images."""
        return Split(self.images[:count], self.labels[:count])

    def to(self, device: torch.device) -> Split:
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))


def load(root: Path) -> tuple[Split, Split]:
    """The training set and the test set under `root`.

    Raises:
        DataError: no known layout, a file is missing or damaged, or images and labels do not match.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such directory")
    for folder in (root, root / BATCHES):
        if (folder / TEST_FILES[0]).exists() or (folder / TRAIN_FILES[0]).exists():
            return _from_batches(folder, TRAIN_FILES), _from_batches(folder, TEST_FILES)
    if (root / "labels.npz").exists() or any(root.glob("train_*.webp")):
        return _from_sheets(root, "train"), _from_sheets(root, "test")
    hint = " (unpack cifar-10-python.tar.gz first)" if any(root.glob("cifar-10*.tar.gz")) else ""
    raise DataError(f"{root}: neither {BATCHES}/ nor labels.npz with train_*.webp is there{hint}")


def _from_batches(folder: Path, names: Sequence[str]) -> Split:
    batches = [_unpickle(folder / name) for name in names]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return _checked(images.reshape(-1, 3, SIZE, SIZE), labels, folder)


def _unpickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
        images, labels = batch["data"], np.asarray(batch["labels"])
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
    ) as error:
        raise DataError(f"{path}: damaged, or not a CIFAR-10 batch ({error!r})") from error
    if getattr(images, "dtype", None) != np.uint8 or images.shape[1:] != (3 * SIZE * SIZE,):
        raise DataError(f"{path}: expected `data` to be (N, {3 * SIZE * SIZE}) uint8")
    return images, labels


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain Python values; a pickle could run any code otherwise."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in IN_PICKLES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _from_sheets(root: Path, split: str) -> Split:
    paths = sorted(root.glob(f"{split}_*.webp"))
    if not paths:
        raise DataError(f"{root}: {split}_*.webp is missing")
    with ThreadPoolExecutor() as pool:
        images = np.concatenate(list(pool.map(_tiles, paths)))
    return _checked(images, _labels(root / "labels.npz", f"y_{split}"), root)


def _tiles(path: Path) -> np.ndarray:
    """The tiles of one sheet, (N, 3, 32, 32), row by row."""
    try:
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path}: damaged, or not an image ({error})") from error
    height, width, _ = sheet.shape
    if height % SIZE or width % SIZE:
        raise DataError(f"{path}: {width}x{height} is not a grid of {SIZE}x{SIZE} tiles")
    grid = sheet.reshape(height // SIZE, SIZE, width // SIZE, SIZE, 3)
    return grid.transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIZE, SIZE)


def _labels(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path) as arrays:
            return arrays[name]
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged, or without {name} ({error})") from error


def _checked(images: np.ndarray, labels: np.ndarray, where: Path) -> Split:
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels; is a file missing?")
    if not len(labels) or labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{where}: expected labels from 0 to {CLASSES - 1}")
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def normalized(images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) as float32 with zero mean and unit variance per channel over CIFAR-10."""
    mean, deviation = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in CHANNELS)
    return (images / 255 - mean) / deviation
