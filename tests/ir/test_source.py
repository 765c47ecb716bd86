"""The user's line in a traceback, and errors of theirs told from those of torch's compiler and our own."""

from __future__ import annotations

import traceback
from traceback import FrameSummary

import pytest
import torch
from torch import nn

from fxapprox.ir import source
from fxapprox.ir.source import GraphBreak, breaks_text, described, graph_breaks, is_users, user_line


def frame(file: object, line: int = 1, name: str = "forward", code: str = "x") -> FrameSummary:
    return FrameSummary(str(file), line, name, line=code)


MINE = frame("/home/me/net.py", 7, "torch_dynamo_resume_in_forward_at_5", "  return self.a(x)")
LIBRARY = frame(source.LIBRARIES[1] / "transformers" / "model.py", 3)
TORCH = frame(source.TORCH / "nn" / "modules" / "linear.py", 134)
OURS = frame(source.OURS / "frontend" / "explain.py", 105, "run")


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        ([OURS, MINE, TORCH], "net.py:7 in forward: return self.a(x)"),
        ([OURS, MINE, LIBRARY, TORCH], "net.py:7 in forward: return self.a(x)"),
        ([OURS, LIBRARY, TORCH], "model.py:3 in forward: x"),
        ([MINE, OURS, TORCH], ""),  # it called us
        ([frame("<string>")], ""),
        ([], ""),
    ],
)
def test_the_users_line(frames: list[FrameSummary], line: str) -> None:
    assert user_line(frames) == line


def test_errors_out_of_a_model_are_the_users() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(3, 4)(torch.randn(2, 5))
    assert is_users(caught.value)
    (line,) = [f.lineno for f in traceback.extract_tb(caught.value.__traceback__) if f.filename == __file__]
    text = described(caught.value)
    assert text.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 3x4) (test_source.py:")
    assert f"test_source.py:{line} in test_errors_out_of_a_model_are_the_users: nn.Linear(3, 4)" in text
    assert described(ValueError()) == "ValueError: no message"
    assert not is_users(ValueError("no frames"))


def test_breaks_are_told_once() -> None:
    reason = "Failed to trace\n  Explanation: Dynamo does not know `print`.\n  Hint: Leave it out.\n  Hint: Or not.\n"
    raw = [(reason, [OURS, MINE]), (reason, [MINE]), (reason, [OURS]), ("generic_jump TensorVariable()", [MINE])]
    found = graph_breaks(raw)
    assert found == (
        GraphBreak("Dynamo does not know `print`.", "Leave it out.", "net.py:7 in forward: return self.a(x)"),
        GraphBreak(
            "Dynamo does not trace a branch on the value of a tensor.", "", "net.py:7 in forward: return self.a(x)"
        ),
    )
    assert breaks_text(found).splitlines()[:2] == [
        "graph breaks: 2; what crosses one counts once",
        "  net.py:7 in forward: return self.a(x)",
    ]
    assert breaks_text(()) == ""


def test_a_branch_on_a_value_is_one_break() -> None:
    raw = [
        (
            "Data-dependent branching\n  Explanation: Detected data-dependent branching.\n  Hint: Use torch.cond.",
            [MINE],
        ),
        ("generic_jump TensorVariable()", [MINE]),
    ]
    (found,) = graph_breaks(raw)
    assert found.reason == "Dynamo does not trace a branch on the value of a tensor."
