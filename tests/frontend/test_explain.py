"""explain: the plan before a step is run, with the model left as it was."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.show.json import SCHEMA


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())


def test_explain_leaves_the_model_alone() -> None:
    net, x = model(), torch.randn(8, 3, 16, 16)
    before = [t.clone() for t in net.state_dict().values()]
    state = torch.get_rng_state()
    report = fxapprox.explain(net, x, bits=4)
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())
    assert report.saved_bytes < report.baseline_bytes


def test_explain_says_what_a_run_does() -> None:
    net, x = model(), torch.randn(8, 3, 16, 16)
    told = fxapprox.explain(net, x, bits=4, lowering="eager")
    compiled = fxapprox.compile(net, bits=4, lowering="eager")
    compiled(x).sum().backward()
    (done,) = fxapprox.reports(compiled)
    assert (told.baseline_bytes, told.saved_bytes) == (done.baseline_bytes, done.saved_bytes)
    assert [d.storage for d in told.decisions] == [d.storage for d in done.decisions]


def test_decisions_carry_reasons_modules_and_lines() -> None:
    report = fxapprox.explain(model(), torch.randn(8, 3, 16, 16), bits=4)
    by_value = {d.value: d for d in report.decisions}
    conv = by_value["convolution"]
    assert conv.storage == "4-bit threshold"
    assert conv.module == "0"
    assert conv.predicates
    assert all(d.reason for d in report.decisions)
    text = str(report)
    assert "4-bit threshold" in text
    assert "plain torch.compile" in text


def test_json_has_a_version_and_adds_up() -> None:
    report = fxapprox.explain(model(), torch.randn(8, 3, 16, 16), bits=8)
    data = json.loads(report.to_json())
    assert data["schema"] == SCHEMA
    lines = [*data["decisions"], *data["copies"]]
    assert sum(d["bytes_after"] for d in lines) == data["saved_bytes"]
    assert sum(d["bytes_before"] for d in lines) == data["baseline_bytes"]


def test_nothing_to_capture_is_an_error() -> None:
    with pytest.raises(fxapprox.FxApproxError, match="no training graph"):
        fxapprox.explain(nn.ReLU(), torch.randn(3))


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(fxapprox.FxApproxError, match=r"got a compiled model: expected the one that torch\.compile was"):
        fxapprox.explain(torch.compile(model()), torch.randn(8, 3, 16, 16))


def test_a_model_that_raises_while_it_is_traced() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 32), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    with pytest.raises(fxapprox.FxApproxError) as caught:
        fxapprox.explain(Fails(), torch.randn(64, 64))
    message = str(caught.value)
    assert message.startswith("the model failed with RuntimeError: a and b must have same reduction dim")
    assert "test_explain.py" in message
    assert "\n" not in message


def test_all_of_it_saved() -> None:
    def relu(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x).mean()

    text = str(fxapprox.explain(relu, torch.randn(64, 64, requires_grad=True), bits=4))
    assert "inf" not in text.splitlines()[0]
