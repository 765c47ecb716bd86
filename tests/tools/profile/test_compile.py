"""The tool that times compilation; its numbers are no test's business."""

from __future__ import annotations

from tools.profile import compile


def test_ratios_are_taken_within_a_round() -> None:
    def took(wall: float, python: float) -> dict[str, float]:
        return {"compile_seconds": wall, "compile_cpu_seconds": python}

    rounds = [
        {"compile": took(10, 4), "fxapprox-8": took(15, 8)},
        {"compile": took(30, 12), "fxapprox-8": took(30, 12)},
        {"compile": took(20, 8), "fxapprox-8": took(24, 12)},
    ]
    assert compile.row("vit", rounds) == "| vit | 20.0 s | 8.0 s | 1.20x | 1.50x |"
