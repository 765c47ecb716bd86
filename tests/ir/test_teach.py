"""Operators that nobody has described: what they cost is said, and one line describes one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.frontend.cache_key import cache_key
from fxapprox.ir.operators import TAUGHT
from fxapprox.options import Options
from fxapprox.show.table import report_text
from tools.zoo.training import gradients, relative


@torch.library.custom_op("fxapprox_tests::swirl", mutates_args=())
def swirl(x: Tensor) -> Tensor:
    return x * torch.tanh(x)


@torch.library.custom_op("fxapprox_tests::swirl_backward", mutates_args=())
def swirl_backward(gradient: Tensor, x: Tensor) -> Tensor:
    t = torch.tanh(x)
    return gradient * (t + x * (1 - t * t))


@torch.library.custom_op("fxapprox_tests::fill", mutates_args=("x",))
def fill(x: Tensor) -> None:
    x.fill_(1)


swirl.register_fake(torch.empty_like)
swirl_backward.register_fake(lambda gradient, x: torch.empty_like(x))
swirl.register_autograd(
    lambda ctx, gradient: swirl_backward(gradient, ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    TAUGHT.clear()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 256), nn.Linear(256, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(swirl(self.first(x))).square().mean()


def stepped(model: nn.Module, x: Tensor, **options: object) -> tuple[Tensor, fxapprox.Report]:
    torch._dynamo.reset()
    model.zero_grad()
    run = fxapprox.compile(model, lowering="eager", strict=True, **options)  # type: ignore[arg-type]
    run(x).backward()
    (report,) = fxapprox.reports(run)
    return gradients(model), report


def test_a_report_ends_with_what_is_not_known() -> None:
    torch.manual_seed(0)
    _, report = stepped(Net(), torch.randn(128, 32), bits=4)
    size = 128 * 256 * 4
    assert report.unknown == {"fxapprox_tests.swirl_backward": size}
    assert report_text(report).splitlines()[-1] == (
        "not known to fxapprox: fxapprox_tests.swirl_backward; they keep 128.0 KiB exact"
    )
    assert json.loads(report.to_json())["unknown"] == {"operators": report.unknown, "bytes": size}


def test_one_line_describes_an_operator() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(128, 32)
    before, key = stepped(model, x, bits=8), cache_key(Options())
    fxapprox.teach("fxapprox_tests::swirl_backward", "linear", "smooth")
    assert cache_key(Options()) != key
    coded, report = stepped(model, x, bits=8)
    assert report.unknown == {}
    assert "not known" not in report_text(report)
    assert report.saved_bytes < before[1].saved_bytes / 1.5
    assert 0 < relative(coded, before[0]) < 0.02
    fxapprox.teach("fxapprox_tests::swirl", "smooth", cheap=True)
    again, smaller = stepped(model, x, bits=8)
    assert smaller.saved_bytes < report.saved_bytes
    assert relative(again, before[0]) < 0.02


@pytest.mark.parametrize(
    ("operator", "uses", "message"),
    [
        ("fxapprox_tests::missing", ("linear",), "there is no operator"),
        ("swirl", ("linear",), "there is no operator"),
        ("aten::tanh", ("linear",), "knows 'aten::tanh' already"),
        ("fxapprox_tests::fill", ("linear",), "writes to an argument"),
        ("fxapprox_tests::swirl", ("smoth",), "'smoth'.*expected one or more of shape, linear, smooth"),
        ("fxapprox_tests::swirl", (), "no uses"),
    ],
)
def test_what_cannot_be_taught_is_said(operator: str, uses: tuple[str, ...], message: str) -> None:
    with pytest.raises(fxapprox.OptionError, match=message):
        fxapprox.teach(operator, *uses)
