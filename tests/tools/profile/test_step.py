"""The tool that says where a step spends its time; its numbers are no test's business."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fxapprox.passes.pipeline import PASSES
from tools.profile import step


def test_operators_have_their_kind() -> None:
    assert step.kind_of("aten::convolution_backward", in_backward=True) == "libraries"
    assert step.kind_of("aten::addmm", in_backward=False) == "libraries"
    assert step.kind_of("graph_1_cpp_fused_relu_3", in_backward=True) == "kernels, backward"
    assert step.kind_of("graph_0_cpp_fused_relu_3", in_backward=False) == "kernels, forward"
    assert step.kind_of("fxapprox::threshold_decoder", in_backward=True) == "channels"
    assert step.kind_of("aten::empty", in_backward=False) == "rest"


def test_a_line_has_all_kinds_and_their_sum() -> None:
    kinds = {"libraries": 300.4, "kernels, backward": 80.0, "rest": 12.0}
    assert step.row("vit", "8 bits", kinds) == "| vit | 8 bits | 392 | 300 | 0 | 80 | 0 | 12 |"


@pytest.mark.parametrize("change", [*step.KEPT.values(), *step.TRIED.values()])
def test_what_can_be_changed_is_there(change: step.Change | str) -> None:
    if isinstance(change, str):
        assert change in [each.name for each in PASSES if not each.required]
    else:
        module, attribute, _ = change
        assert hasattr(module, attribute)


def test_a_change_that_is_not_known() -> None:
    app = step.typer.Typer()
    app.command()(step.main)
    kept = "loads, width, functions, bytes, layout, ahead, slices"
    for option, known in (("--without", kept), ("--tried", "reuse, rows, levels")):
        result = CliRunner().invoke(app, [option, "lodas"])
        assert result.exit_code == 2
        assert f"no lodas; there are: {known}" in " ".join(result.output.replace("│", " ").split())
