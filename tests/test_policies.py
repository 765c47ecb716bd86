"""Policies made of others, and by class and module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.codecs import Cast, Codec, Exact, Group, Like
from fxapprox.frontend.backend import Backend
from fxapprox.frontend.cache_key import cache_key
from fxapprox.options import Options
from fxapprox.policies import Policy, at_least, by_class, by_module, first


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 128))
        self.head = nn.Sequential(nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).square().mean()


def stored(policy: Policy) -> dict[tuple[str, str], Codec]:
    """{(module, class): codec} of what is coded."""
    report = fxapprox.explain(Net(), torch.randn(64, 64), min_bytes=0, policy=policy)
    return {(d.module, d.kind.value): d.how.codec for d in report.decisions if d.how.codec is not None}


def test_by_class() -> None:
    found = stored(by_class(smooth=Group(3), linear=Group(2)))
    assert {codec.bits for (_, kind), codec in found.items() if kind == "smooth"} == {3}
    assert {codec.bits for (_, kind), codec in found.items() if kind == "linear"} == {2}


def test_by_module_the_first_pattern_counts() -> None:
    found = stored(by_module({"head.0": Exact(), "head": Group(4), "*": Group(2)}))
    for (module, _), codec in found.items():
        expected = None if module == "head.0" else 4 if module.startswith("head") else 2
        assert (codec.bits if not codec.lossless else None) == expected, module


def test_the_first_that_chooses() -> None:
    def by_hand(value: fxapprox.Activation) -> Codec:
        return Group(8 if value.module.startswith("head") else 4 if value.kind.value == "smooth" else 2)

    assert stored(first(by_module({"head": Group(8)}), by_class(linear=Group(2), smooth=Group(4)))) == stored(by_hand)


def test_at_least() -> None:
    few = by_class(smooth=Group(2), linear=Group(2))
    assert {codec.bits for codec in stored(at_least(4, few)).values()} == {4}
    assert at_least(4, by_class(smooth=Exact()))(_value("smooth")) == Exact()
    assert at_least(4, by_class(smooth=Cast()))(_value("smooth")) == Cast()
    assert at_least(4, by_class(linear=Group(2)))(_value("smooth")) is None


@dataclass
class _Value:
    kind: Any
    module: str = ""


def _value(kind: str) -> Any:
    return _Value(fxapprox.Class(kind))


def test_equal_policies_share_graphs_and_caches() -> None:
    def made(bits: int) -> Policy:
        return at_least(4, first(by_module({"head": Group(bits)}), by_class(smooth=Group(8))))

    one, other = (Options(policy=made(4)) for _ in range(2))
    assert Backend(one) == Backend(other)
    assert cache_key(one) == cache_key(other) != cache_key(Options(policy=made(8)))
    assert cache_key(Options(policy=first(by_class(smooth=Group(8)), lambda value: None))) is None


class Own(Codec):
    bits = 2
    encode = decode = nbytes = lambda *_: ()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: by_class(discrete=Group(4)), "discrete.*linear, smooth, attention, softmax"),
        (lambda: by_class(smooth=4), "smooth.*not 4"),  # type: ignore[arg-type]
        (lambda: by_module({"head": "exact"}), "expected a codec for 'head'"),  # type: ignore[dict-item]
        (lambda: by_module({1: Exact()}), "pattern"),  # type: ignore[dict-item]
        (lambda: at_least(5, by_class()), "8, 4, 3 or 2"),
        (lambda: at_least(True, by_class()), "8, 4, 3 or 2"),
        (lambda: first(by_class(), 3), "expected a policy"),  # type: ignore[arg-type]
        (lambda: at_least(8, lambda _: Own())(_value("smooth")), "no dataclass"),
    ],
)
def test_what_is_wrong_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(fxapprox.OptionError, match=message):
        make()


def test_codecs_and_policies_are_public() -> None:
    assert fxapprox.codecs.Group is Group
    assert fxapprox.policies.by_class is by_class
    assert Like.__module__.startswith("fxapprox.codecs")
