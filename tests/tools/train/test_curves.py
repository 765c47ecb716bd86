"""Table and curves of training runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from tools.train import curves, runs

RECIPE = runs.Recipe(8, "basic", 3, 8, None, 0.1, 0.9, 2e-4, "eager")


def run(mode: str, seed: int, losses: list[float]):
    epochs = [runs.Epoch(i + 1, loss, 0.5, loss, 0.5 + seed / 100, 0.1, 1.0) for i, loss in enumerate(losses)]
    return runs.Run(mode, seed, RECIPE, stored_bytes=2**21 if mode == "plain" else 2**20, epochs=epochs)


def labels(losses: list[float]) -> list[str]:
    """What can be read on the axis of the losses."""
    axes = Figure().subplots()
    axes.set(yscale="log")
    axes.plot(range(1, len(losses) + 1), losses)
    curves.label_losses(axes)
    low, high = axes.get_ylim()
    return axes.yaxis.get_major_formatter().format_ticks([tick for tick in axes.get_yticks() if low <= tick <= high])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.5, 1.0, 0.83], "0.8 0.9 1 1.5"),
        ([1.3, 0.96], "0.9 1 1.1 1.2 1.3"),
        ([1.6, 0.35], "0.4 0.5 0.6 0.7 0.8 0.9 1 1.5"),
        ([2.0, 0.03], "0.05 0.1 0.2 0.5 1 2"),
        ([2.0, 0.002], "0.01 0.1 1"),
        ([1.5], "1.44 1.46 1.48 1.5 1.52 1.54 1.56 1.58"),
        ([float("nan")], "1 2 5 10"),
    ],
)
def test_losses_are_labelled_with_plain_numbers(losses: list[float], expected: str) -> None:
    assert labels(losses) == expected.split()


@given(st.floats(1e-3, 100), st.floats(1, 1000))
def test_two_labels_are_always_visible(lowest: float, ratio: float) -> None:
    found = labels([lowest * ratio, lowest])
    assert len(set(found)) == len(found) >= 2
    assert not any("e" in label for label in found)


@pytest.mark.parametrize("losses", [[1.5, 1.0, 0.8], [1.5], [float("nan")]], ids=["three", "one", "diverged"])
def test_curves_of_any_number_of_epochs(losses: list[float], tmp_path: Path) -> None:
    curves.plot([run("plain", 0, losses), run("4", 0, losses)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000


def test_table_has_a_row_per_mode_with_the_spread_over_seeds() -> None:
    head, _, *rows = curves.table([run("4", 0, [1.0]), run("4", 2, [1.0]), run("plain", 0, [1.5])]).splitlines()
    assert head.startswith("| mode | seeds | epochs | stored, MiB | ratio |")
    assert rows[0] == "| torch.compile | 1 | 1 | 2.0 | 1.000 | 1.5000 | 1.5000 | 50.00 | 1.0 |"
    assert rows[1] == "| 4 bits | 2 | 1 | 1.0 | 0.500 | 1.0000 ± 0.0000 | 1.0000 ± 0.0000 | 51.00 ± 1.41 | 1.0 |"
