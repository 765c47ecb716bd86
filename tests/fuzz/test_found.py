"""Programs that failed once, shrunk."""

from __future__ import annotations

from tests.fuzz.program import Input, Program
from tests.fuzz.properties import check


def test_signs_of_a_transposed_matrix() -> None:
    program = Program(
        inputs=(Input("x0", ("n", 8), grad=True), Input("w1", (16, 8))),
        lines=("v2 = F.linear(x0, w1).T", "v3 = v2.abs().sum(0)"),
        outputs=("v3",),
    )
    check(program, lossless="exact", bits=8)
