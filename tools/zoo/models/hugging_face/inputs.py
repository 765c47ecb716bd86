"""What the architectures are fed: random tokens, images and sounds of one size, with labels."""

from __future__ import annotations

import torch
from torch import Tensor

VOCABULARY, TOKENS, SPECIAL = 128, 24, 3  # tokens below SPECIAL are padding, begin and end
IMAGE, CLASSES = 32, 10
SAMPLES, BANDS, FRAMES = 400, 16, 48  # of a sound: samples; bands and frames of its spectrum
IGNORED = -100  # a label that the package's losses leave out


def texts(batch: int) -> dict[str, Tensor]:
    """Texts without padding, labelled with their own tokens: a decoder shifts them itself."""
    tokens = _tokens(batch)
    return {"input_ids": tokens, "labels": tokens.clone()}


def padded_right(batch: int) -> dict[str, Tensor]:
    """Texts of several lengths, padded behind; labels leave padding out."""
    tokens, mask = _tokens(batch), _real(batch)
    return _padded(tokens, mask)


def padded_left(batch: int) -> dict[str, Tensor]:
    """Texts of several lengths, padded in front: with a causal mask, padding attends to nothing real."""
    tokens, mask = _tokens(batch), _real(batch).flip(1)
    return _padded(tokens, mask)


def translated(batch: int) -> dict[str, Tensor]:
    """Padded texts, and others that they are to become, half as long."""
    mask = _real(batch)
    return {
        "input_ids": _tokens(batch) * mask,
        "attention_mask": mask,
        "labels": _tokens(batch)[:, : TOKENS // 2].contiguous(),
    }


def sorted_texts(batch: int) -> dict[str, Tensor]:
    """Padded texts, each with a class."""
    mask = _real(batch)
    return {"input_ids": _tokens(batch) * mask, "attention_mask": mask, "labels": _classes(batch)}


def images(batch: int) -> dict[str, Tensor]:
    """Images, (batch, 3, 32, 32)."""
    return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE)}


def sorted_images(batch: int) -> dict[str, Tensor]:
    """Images, each with a class."""
    return {**images(batch), "labels": _classes(batch)}


def segmented_images(batch: int) -> dict[str, Tensor]:
    """Images with a class for each pixel."""
    return {**images(batch), "labels": torch.randint(CLASSES, (batch, IMAGE, IMAGE))}


def captioned_images(batch: int) -> dict[str, Tensor]:
    """Images, each with a padded text."""
    mask = _real(batch)
    return {"input_ids": _tokens(batch) * mask, "attention_mask": mask, **images(batch)}


def measured_images(batch: int) -> dict[str, Tensor]:
    """Images with the depth of each pixel."""
    return {**images(batch), "labels": 1 + torch.rand(batch, IMAGE, IMAGE)}


def sorted_films(batch: int) -> dict[str, Tensor]:
    """Films, (batch, 4, 3, 32, 32), each with a class."""
    return {"pixel_values": torch.randn(batch, 4, 3, IMAGE, IMAGE), "labels": _classes(batch)}


def described_images(batch: int) -> dict[str, Tensor]:
    """Images, each with a text that is to be learned."""
    return {**images(batch), **texts(batch)}


def sorted_sounds(batch: int) -> dict[str, Tensor]:
    """Sounds, (batch, 400), each with a class."""
    return {"input_values": torch.randn(batch, SAMPLES), "labels": _classes(batch)}


def spoken(batch: int) -> dict[str, Tensor]:
    """Sounds with the few tokens that are said in them."""
    return {"input_values": torch.randn(batch, SAMPLES), "labels": torch.randint(SPECIAL, VOCABULARY, (batch, 4))}


def heard(batch: int) -> dict[str, Tensor]:
    """Spectra, (batch, bands, frames), with the text that is said in them."""
    return {"input_features": torch.randn(batch, BANDS, FRAMES), "labels": _tokens(batch)[:, :12].contiguous()}


def sorted_spectra(batch: int) -> dict[str, Tensor]:
    """Spectra, (batch, frames, bands), each with a class."""
    return {"input_values": torch.randn(batch, FRAMES, BANDS), "labels": _classes(batch)}


def series(batch: int) -> dict[str, Tensor]:
    """Several time series, (batch, time, channels), and how they go on."""
    return {"past_values": torch.randn(batch, 32, 4), "future_values": torch.randn(batch, 8, 4)}


def dated_series(batch: int) -> dict[str, Tensor]:
    """A time series and how it goes on, (batch, time), with one feature of the date at each time."""
    past, future = 32 + 7, 8  # 7: the largest lag at which the series is looked up
    return {
        "past_values": torch.randn(batch, past),
        "past_time_features": torch.randn(batch, past, 1),
        "past_observed_mask": torch.ones(batch, past),
        "future_values": torch.randn(batch, future),
        "future_time_features": torch.randn(batch, future, 1),
    }


def sounds(batch: int) -> dict[str, Tensor]:
    """Sounds, (batch, 1, 400)."""
    return {"input_values": torch.randn(batch, 1, SAMPLES)}


def written_pages(batch: int) -> dict[str, Tensor]:
    """Padded texts with the corners of each word on its page, and a class."""
    return {**sorted_texts(batch), "bbox": torch.randint(30, (batch, TOKENS, 4)).sort(-1).values}


def _tokens(batch: int) -> Tensor:
    return torch.randint(SPECIAL, VOCABULARY, (batch, TOKENS))


def _classes(batch: int) -> Tensor:
    return torch.randint(CLASSES, (batch,))


def _real(batch: int) -> Tensor:
    """1 where a text has a token, 0 behind its end; the first text is whole."""
    lengths = TOKENS - 5 * (torch.arange(batch) % 4)
    return (torch.arange(TOKENS) < lengths[:, None]).long()


def _padded(tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    labels = torch.where(mask.bool(), tokens, IGNORED)
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}
