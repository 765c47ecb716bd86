"""pipeline: whatever pass is left out, forward stays what it was, and in exact mode the gradients do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxapprox.passes.pipeline import PASSES, PREPARE, SPLIT, leaving_out
from tests.passes.graphs import traced


def test_names_are_unique() -> None:
    names = [each.name for each in PASSES]
    assert len(set(names)) == len(names)


class Passes(nn.Module):
    """A place for each pass that can be left out: a vocabulary, an image, a residual stream, a shape that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.second(self.norm(x).relu()) + x.tanh()
        x = nn.functional.max_pool2d(x, 2).flatten(2).mT
        return nn.functional.cross_entropy(
            self.head(x).flatten(0, 1), torch.zeros(x.shape[:2].numel(), dtype=torch.long)
        )


@pytest.mark.parametrize("bits", [None, 8, "auto"])
def test_forward_is_the_same_without_a_pass(bits: int | str | None) -> None:
    """Whatever is left out, the outputs are bitwise the same; in exact mode the gradients are."""
    torch.manual_seed(0)
    joint = traced(Passes(), torch.randn(16, 3, 8, 8))
    whole = joint.step(joint.split(bits=bits, checkpoint="sqrt"))
    for name in [each.name for each in (*PREPARE, *SPLIT) if not each.required]:
        with leaving_out(name):
            found = joint.step(joint.split(bits=bits, checkpoint="sqrt"))
        assert torch.equal(found.outputs[0], whole.outputs[0]), name
        if (
            bits is None and name != "advance"
        ):  # which multiplies by the loss's gradient elsewhere: the same bits if it is 1
            assert found.same_as(whole), name
