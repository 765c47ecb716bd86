"""Real data that is at hand without a network: digits, CIFAR-10, the standard library's sources and documentation."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.convergence.task import Batch, Data, Place
from tools.train.cifar import PADDING, crop_and_flip
from tools.train.data import SIZE, load, normalized

SPLIT_SEED = 0  # of what is trained on and what is not
NOISE = 0.5  # that the denoiser takes away; images have a variance of 1
HELD_BACK = 10  # every tenth file, or the last tenth of a text


def digest_of(parts: Iterable[bytes]) -> str:
    """The beginning of a SHA-256."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def _digest(*tensors: Tensor) -> str:
    return digest_of(tensor.numpy().tobytes() for tensor in tensors)


# Images ----------------------------------------------------------------------------------------------------


@cache
def digits(_: Place) -> Data:
    """scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8), from 0 to 1; a third is held back."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 16, torch.tensor(classes)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    images, labels = images[order], labels[order]
    return Data((images[600:], labels[600:]), (images[:600], labels[:600]), _digest(images, labels))


@cache
def cifar(place: Place, *, train: int = 50_000, valid: int = 10_000, size: int = SIZE) -> Data:
    """CIFAR-10's first images, normalized; smaller than 32 x 32 by averaging over squares."""
    parts = []
    for split, count in zip(load(place.data), (train, valid), strict=True):
        images = F.avg_pool2d(normalized(split.images[:count]), SIZE // size)
        parts.append((images, split.labels[:count]))
    (train_x, train_y), (valid_x, valid_y) = parts
    return Data((train_x, train_y), (valid_x, valid_y), _digest(train_x, train_y, valid_x, valid_y))


def small_cifar(place: Place) -> Data:
    """20,000 images of 16 x 16, and 5,000 that are held back."""
    return cifar(place, train=20_000, valid=5_000, size=16)


def augmented(x: Tensor, y: Tensor, rng: torch.Generator) -> Batch:
    """Cropped and mirrored at random, as the paper trains."""
    most = PADDING * x.shape[-1] // SIZE
    corners = PADDING + torch.randint(-most, most + 1, (len(x), 2), generator=rng)
    return crop_and_flip(x, corners, torch.rand(len(x), generator=rng) < 0.5), y


def clean_patches(place: Place) -> Data:
    """CIFAR's small images as targets; the inputs of those that are held back have fixed noise."""
    data = small_cifar(place)
    (train, _), (valid, _) = data.train, data.valid
    valid = valid[:1000]
    noisy, _ = with_noise(valid, valid, torch.Generator().manual_seed(SPLIT_SEED))
    return Data((train, train), (noisy, valid), data.digest)


def with_noise(_: Tensor, clean: Tensor, rng: torch.Generator) -> Batch:
    """Fresh noise for each batch."""
    return clean + NOISE * torch.randn(clean.shape, generator=rng).to(clean.device), clean


def flat_patches(place: Place) -> Data:
    """CIFAR's small images as rows of 8 x 8 x 3 numbers, with their classes."""
    data = cifar(place, train=20_000, valid=5_000, size=8)
    (train_x, train_y), (valid_x, valid_y) = data.train, data.valid
    return Data((train_x.flatten(1), train_y), (valid_x.flatten(1), valid_y), data.digest)


# Text ------------------------------------------------------------------------------------------------------


def windows(text: bytes, length: int) -> Batch:
    """Rows of bytes (N, length), each with the bytes that follow its own."""
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@cache
def sources(_: Place, *, length: int = 64, valid: int = 1_000) -> Data:
    """The bytes of the standard library's public modules at its top; every tenth file is held back.

    Another interpreter has other sources, which the digest tells.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    public = [name for name in sorted(sys.stdlib_module_names) if not name.startswith("_")]
    files = [path.read_bytes() for name in public if (path := folder / f"{name}.py").exists()]
    held_back = b"".join(files[HELD_BACK - 1 :: HELD_BACK])
    del files[HELD_BACK - 1 :: HELD_BACK]
    x, y = windows(held_back, length)
    return Data(windows(b"".join(files), length), (x[:valid], y[:valid]), digest_of([held_back, *files]))


@cache
def documentation(place: Place, *, length: int = 64) -> Data:
    """The bytes of the language's documentation as the interpreter has it; the last tenth is held back.

    The digest is that of the sources, too, which what is trained on this was trained on before.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    cut = len(text) - len(text) // HELD_BACK
    return Data(
        windows(text[:cut], length), windows(text[cut:], length), digest_of([text, sources(place).digest.encode()])
    )
