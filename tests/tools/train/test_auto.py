"""The curves of bits="auto"."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tools.train import auto
from tools.train.auto import Curve


def curves(losses: list[float]) -> dict[str, list[Curve]]:
    bits = (None, None, 4.0, 3.5, 3.0, 2.0)
    group = [Curve(mode, b, 2**20, losses) for mode, b in zip(auto.MODES, bits, strict=True)]
    return {"one": group, "other": group}


def test_generated_text_follows_its_two_last_tokens() -> None:
    text = auto.generate_text(200, 40, 8, seed=0)
    assert text.shape == (200, 40)
    assert torch.equal(text, auto.generate_text(200, 40, 8, seed=0))
    assert text.unique().tolist() == list(range(8))
    for lag in (1, 2):
        pairs = torch.zeros(8, 8).index_put((text[:, 2 - lag : -lag].flatten(), text[:, 2:].flatten()),
                                            torch.ones(()), accumulate=True)  # fmt: skip
        assert float((pairs / pairs.sum(1, keepdim=True)).amax(1).mean()) > 0.25  # 1/8 if it did not matter


def test_smoothed_losses_are_means_of_the_last_ones() -> None:
    assert auto.smooth([4.0, 2.0, 0.0, 4.0], steps=2) == [4.0, 3.0, 1.0, 2.0]


@pytest.mark.parametrize("losses", [[2.0, 1.5, 1.0], [2.0], [2.0, math.nan]], ids=["three", "one", "diverged"])
def test_curves_are_drawn_and_written(losses: list[float], tmp_path: Path) -> None:
    auto.plot(curves(losses), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000
    record = json.loads(auto.as_json(curves(losses)))
    assert list(record) == ["one", "other"]
    assert record["one"][0]["losses"][-1] == (None if math.isnan(losses[-1]) else losses[-1])


def test_the_table_compares_with_the_first_mode() -> None:
    group = curves([2.0, 1.0])["one"][1:3]
    group[1].losses = [2.0, 1.25]
    lines = auto.table({"net": group}).splitlines()
    assert lines[2] == "| net | exact, nudged |  | 1.0 MiB | 1.0000 | +0.0000 |"
    assert lines[3] == "| net | auto, average 4 | 4.00 | 1.0 MiB | 1.2500 | +0.2500 |"
