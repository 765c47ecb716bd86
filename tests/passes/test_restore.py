"""restore: a saved plan is taken up if it fits the graph, and refused with the reason if not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxapprox.codecs import Group, Mask
from fxapprox.errors import InvalidPlan
from fxapprox.files.plan_file import SavedPlan, saved_entries
from fxapprox.ir.records import Activation
from fxapprox.options import Options
from fxapprox.passes.classify import classify
from fxapprox.passes.plan import plan
from fxapprox.passes.restore import restore
from tests.passes.graphs import joint_of

W = torch.randn(64, 64, requires_grad=True)
OPTIONS = Options(bits=4, min_bytes=0)


def smooth(x: Tensor) -> Tensor:
    return (F.gelu(x @ W) @ W).square().sum()


def branching(x: Tensor) -> Tensor:
    return (F.relu(x @ W) * torch.tanh(x @ W)).sum()


def values(function: object) -> tuple[Activation, ...]:
    return classify(joint_of(function, torch.randn(64, 64, requires_grad=True)), min_bytes=0)  # type: ignore[arg-type]


def saved(function: object) -> SavedPlan:
    found = values(function)
    return SavedPlan((saved_entries(plan(found, OPTIONS), found),))


@pytest.mark.parametrize("function", [smooth, branching])
@pytest.mark.parametrize("bits", [None, 8, 2])
def test_the_same_plan_comes_back_whatever_the_options_are(function: object, bits: int | None) -> None:
    found = values(function)
    assert restore(saved(function), found, Options(bits=bits, min_bytes=0), {}) == plan(found, OPTIONS)


def test_the_graph_that_fits_is_found() -> None:
    both = SavedPlan((*saved(smooth).graphs, *saved(branching).graphs))
    assert restore(both, values(branching), OPTIONS, {}) == plan(values(branching), OPTIONS)


def broken(change: str) -> SavedPlan:
    (entries,) = saved(smooth).graphs
    first, rest = entries[0], entries[1:]
    found = {
        "absent": (replace(first, value="nobody"), *rest),
        "other": (replace(first, op="aten.sin"), *rest),
        "too little": rest,
        "too much": (*entries, replace(first, value="view", op="aten.view")),
        "codec": (replace(first, codec=Mask()), *rest),
        "bits": tuple(replace(e, codec=Group(2)) if isinstance(e.codec, Group) else e for e in entries),
    }
    return SavedPlan((found[change],))


@pytest.mark.parametrize(
    ("change", "says"),
    [("absent", "no value 'nobody'"), ("other", "the plan has aten.sin"), ("too little", "not stored|stored as well"),
     ("codec", "would be stored in"), ("bits", "needs 4 bits .smooth., not 2")],
)  # fmt: skip
def test_a_plan_that_does_not_fit_is_refused(change: str, says: str) -> None:
    with pytest.raises(InvalidPlan, match=says):
        restore(broken(change), values(smooth), OPTIONS, {})


def test_the_message_names_what_differs() -> None:
    """Two codecs that look alike are not told apart: what differs are the decisions."""
    (entries,) = saved(branching).graphs
    coder = next(entry for entry in entries if entry.carries)
    changed = tuple(replace(e, carries=()) if e is coder else e for e in entries)
    with pytest.raises(
        InvalidPlan, match=f"carries other decisions: {', '.join(sorted(coder.carries))}; in the plan none"
    ):
        restore(SavedPlan((changed,)), values(branching), OPTIONS, {})


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="no graphs"):
        restore(SavedPlan(()), values(smooth), OPTIONS, {})
