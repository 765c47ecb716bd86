"""Every codec: what comes back, at any shape, layout and dtype, and with values that are not finite."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import (
    Carrier,
    Cast,
    Codec,
    Context,
    Group,
    Identity,
    Integer,
    Like,
    Mask,
    Predicate,
    Standard,
    Threshold,
    Zero,
)
from fxapprox.codecs.grid import round_to_bfloat16
from fxapprox.codecs.packing import pack, packed_bytes, unpack
from fxapprox.codecs.threshold import kept_dims
from fxapprox.errors import OptionError
from fxapprox.ir.tensors import memory_order

BITS = (8, 4, 3, 2)
SHAPES = st.lists(st.integers(0, 9), max_size=4)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, bits=st.sampled_from((1, 2, 3, 4, 8)))
def test_packing_returns_every_code(shape: list[int], bits: int) -> None:
    codes = torch.randint(0, 2**bits, shape, dtype=torch.int32)
    packed = pack(codes, bits)
    assert packed.nbytes == packed_bytes(shape, bits)
    assert torch.equal(unpack(packed, bits, shape), codes)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES)
def test_masks_and_integers_lose_nothing(shape: list[int]) -> None:
    mask = torch.rand(shape) > 0.5
    assert torch.equal(Mask().decode(Mask().encode(mask), Like.of(mask)), mask)
    for low, high in ((0, 3), (-1, 1), (0, 300), (-5, 70_000)):
        codec = Integer(low, high)
        whole = torch.randint(low, high + 1, shape)
        parts = codec.encode(whole)
        assert torch.equal(codec.decode(parts, Like.of(whole)), whole)
        assert sum(part.nbytes for part in parts) == codec.nbytes(whole.shape, whole.dtype)


@settings(max_examples=80, deadline=None)
@given(shape=SHAPES, bits=st.sampled_from(BITS), rounding=st.sampled_from(("nearest", "stochastic")))
def test_group_codec_takes_any_shape(shape: list[int], bits: int, rounding: str) -> None:
    x = torch.randn(shape)
    codec = Group(bits, rounding)
    parts = codec.encode(x)
    found = codec.decode(parts, Like.of(x))
    assert found.shape == x.shape
    assert sum(part.nbytes for part in parts) == codec.nbytes(x.shape, x.dtype)
    if x.numel():
        spread = float(x.max() - x.min()) + 1e-30
        steps = 2 if rounding == "stochastic" else 1.5
        assert float((found - x).abs().max()) <= steps * spread / (2**bits - 1) + 1e-6


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_group_codec_keeps_nan_and_infinity_in_their_places(bits: int, rounding: str) -> None:
    x = torch.randn(3, 5, 7)
    x[0, 0, 0], x[1, 1, 1], x[2, 2, 2] = math.nan, math.inf, -math.inf
    codec = Group(bits, rounding)
    found = codec.decode(codec.encode(x), Like.of(x))
    assert torch.equal(found.isnan(), x.isnan())
    assert torch.equal(found[x.isinf()], x[x.isinf()])
    assert torch.equal(found.isfinite(), x.isfinite())


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.005), (4, 0.08), (3, 0.16), (2, 0.36)])
def test_skewed_levels_suit_attention_weights(bits: int, limit: float) -> None:
    weights = torch.softmax(2 * torch.randn(8, 4, 64, 64), -1)
    skewed, uniform = (
        relative(codec.decode(codec.encode(weights), Like.of(weights)), weights)
        for codec in (Group(bits, skewed=True), Group(bits, uniform=True))
    )
    assert skewed < min(limit, uniform)


def test_a_softmax_keeps_its_small_elements_and_its_sum() -> None:
    """With equidistant levels the improbable became 0, and a cross-entropy no longer pushed it down."""
    weights = torch.softmax(4 * torch.randn(64, 256), -1)
    codec = Group(8, skewed=True)
    found = codec.decode(codec.encode(weights), Like.of(weights))
    assert float((found / weights - 1)[weights > weights.amax(-1, keepdim=True) / 1000].abs().max()) < 0.05
    assert bool((found >= 0).all())
    assert float((found.sum(-1) - 1).abs().max()) < 0.01
    assert float(found.sum(-1).mean() - 1) < 0.001


@settings(max_examples=60, deadline=None)
@given(
    reach=st.floats(0.5, 9), spread=st.floats(0, 2), bits=st.sampled_from((8, 4)), shape=SHAPES,
    rounding=st.sampled_from(("nearest", "stochastic")),
)  # fmt: skip
def test_hollow_levels_keep_the_derivative_of_what_saturates(
    reach: float, spread: float, bits: int, shape: list[int], rounding: str
) -> None:
    """The error of 1 - y * y is a share of its largest element, however near to both ends all elements are."""
    y = torch.tanh(torch.randn(shape) * spread + torch.randn(shape).sign() * reach)
    codec = Group(bits, rounding, hollow=True)
    parts = codec.encode(y)
    found = codec.decode(parts, Like.of(y))
    assert sum(part.nbytes for part in parts) == codec.nbytes(y.shape, y.dtype)
    if y.numel():
        off, largest = ((1 - found.square()) - (1 - y.square())).abs().max(), (1 - y.square()).max()
        share = (4 if rounding == "stochastic" else 2) / (2**bits - 1)
        rounded = 32 * torch.finfo(y.dtype).eps  # of y near 1, twice as much in its square
        assert float(off) <= share * float(largest) + rounded


def test_hollow_levels_end_where_the_values_do() -> None:
    """A unit that is fully saturated has no derivative: of a code's 0.998 there would be one."""
    y = torch.tanh(torch.cat([torch.full((200,), 20.0), torch.full((55,), -20.0), torch.tensor([0.3])]))
    found = Group(4, hollow=True).decode(Group(4, hollow=True).encode(y), Like.of(y))
    assert torch.equal(found[:-1], y[:-1])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.1, 1.0])
def test_a_quiet_channel_is_coded_in_its_own_range(bits: int, size: float) -> None:
    """Its variance is below the normalization's eps, so that it reaches a hundredth of a deviation only."""
    x = torch.cat([size * 3e-3 * torch.randn(16, 1, 8, 8), torch.randn(16, 1, 8, 8)], 1) + 0.5
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    rstd = torch.rsqrt(var + 1e-5)
    context = Context(
        Predicate((x - mean) * rstd > 0.01, torch.ones(2, 1, 1), torch.full((2, 1, 1), -0.01)), mean, rstd
    )
    carried, upper = Threshold(bits).decode_with(Threshold(bits).encode(x, context), Like.of(x))
    plain = Standard(bits).decode(Standard(bits).encode(x, Context(mean=mean, rstd=rstd)), Like.of(x))
    assert torch.equal(upper, context.decision.upper)
    for found in (carried, plain):
        off = (found - x).square().mean((0, 2, 3)).sqrt()
        limit = {8: 0.02, 4: 0.2, 3: 0.35, 2: 0.6}[bits] * (x - mean).square().mean((0, 2, 3)).sqrt()
        assert bool((off <= limit + 1e-6).all())


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.12), (4, 0.7)])
def test_heavy_tails_are_not_clipped(bits: int, limit: float) -> None:
    """One value owns its channel (of it, a grid to 4 deviations would lose 94%); the other keeps its fine grid."""
    x = torch.randn(16, 2, 16, 16)
    x[0, 0, 0, 0] = 600.0
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    one, zero = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)
    context = Context(Predicate(x > mean, one, zero), mean, torch.rsqrt(var))
    carried, _ = Threshold(bits).decode_with(Threshold(bits).encode(x, context), Like.of(x))
    plain = Standard(bits).decode(Standard(bits).encode(x, Context(mean=mean, rstd=torch.rsqrt(var))), Like.of(x))
    for found in (carried, plain):
        assert relative(found[:, 0] - mean[:, 0], x[:, 0] - mean[:, 0]) < limit
        assert relative(found[:, 1] - mean[:, 1], x[:, 1] - mean[:, 1]) < {8: 0.01, 4: 0.11}[bits]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("codec", [Group(8), Identity(), Cast(torch.bfloat16)], ids=lambda c: c.label)
def test_dtype_and_strides_come_back(dtype: torch.dtype, codec: Group) -> None:
    x = torch.randn(2, 6, 5, 4).to(dtype)
    for y in (x, x.to(memory_format=torch.channels_last), x.transpose(1, 3)):
        found = codec.decode(codec.encode(y), Like.of(y, memory_order(y)))
        assert (found.dtype, found.stride()) == (y.dtype, y.stride())
        assert relative(found.double(), y.double()) < 0.02


def test_stochastic_rounding_is_unbiased_and_repeats() -> None:
    x = torch.randn(400, 128)
    codec = Group(4, "stochastic")
    first = codec.decode(codec.encode(x), Like.of(x))
    again = codec.decode(codec.encode(x), Like.of(x))
    assert torch.equal(first, again)
    error = first - x
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(error.numel())
    assert abs(float((error * x).mean())) < 4 * float((error * x).std()) / math.sqrt(error.numel())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("offset", [-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
def test_threshold_codec_never_flips_a_decision(bits: int, offset: float) -> None:
    """gamma negative, zero and tiny, beta/gamma inside and far outside the grid."""
    x = torch.randn(16, 6, 9, 7) * 3 - 1
    gamma = torch.tensor([-1.0, 0.0, 1e-9, 0.7, -1e-9, 1.3]).view(-1, 1, 1)
    beta = torch.where(gamma == 0, torch.tensor(offset), offset * gamma)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    rstd = torch.rsqrt(var + 1e-5)
    upper = (x - mean) * rstd * gamma + beta > 0
    for context in (
        Context(Predicate(upper, gamma, beta), mean, rstd),
        Context(Predicate(upper, gamma * rstd, beta - mean * gamma * rstd)),
    ):
        codec = Threshold(bits)
        found, decided = codec.decode_with(codec.encode(x, context), Like.of(x))
        assert torch.equal(decided, upper)
        assert found.isfinite().all()
    if offset == 0:
        assert relative(found - mean, x - mean) < {8: 0.02, 4: 0.2, 3: 0.4, 2: 0.7}[bits]


@pytest.mark.parametrize("bits", BITS)
def test_threshold_codec_never_hides_a_nan(bits: int) -> None:
    x = torch.randn(4, 3, 8, 8)
    x[0, 1, 0, 0], x[0, 2, 0, 0] = math.nan, math.inf
    upper = ~(torch.relu(x) <= 0)
    codec = Threshold(bits)
    parts = codec.encode(x, Context(Predicate(upper, torch.ones(3, 1, 1), torch.zeros(3, 1, 1))))
    found, decided = codec.decode_with(parts, Like.of(x))
    assert torch.equal(decided, upper)
    assert torch.equal(found.isfinite(), x.isfinite())


@pytest.mark.parametrize("bits", BITS)
def test_threshold_codec_with_the_statistics_of_a_normalization_never_hides_a_nan(bits: int) -> None:
    x = torch.randn(4, 3, 8, 8)
    x[0, 1, 0, 0], x[0, 2, 0, 0] = math.nan, math.inf
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    upper = ~(torch.relu(x) <= 0)
    context = Context(Predicate(upper, torch.ones(3, 1, 1), torch.zeros(3, 1, 1)), mean, torch.rsqrt(var))
    codec = Threshold(bits)
    found, decided = codec.decode_with(codec.encode(x, context), Like.of(x))
    assert torch.equal(decided, upper)
    assert found[:, 0].isfinite().all()
    assert found[:, 1:].isnan().all()


@settings(max_examples=80, deadline=None)
@given(shape=st.lists(st.integers(0, 9), min_size=2, max_size=4), bits=st.sampled_from(BITS), centred=st.booleans())
@example(shape=[8, 0], bits=3, centred=False)
def test_standard_codec_takes_any_shape(shape: list[int], bits: int, centred: bool) -> None:
    x = torch.randn(shape) * 3 + (0 if centred else 5)
    dims = [d for d in range(len(shape)) if d not in kept_dims(len(shape))]
    mean = torch.zeros(()) if centred or not x.numel() else x.mean(dims, keepdim=True)
    rstd = torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + 1e-5)
    parts = Standard(bits).encode(x, Context(mean=None if centred else mean, rstd=rstd))
    found = Standard(bits).decode(parts, Like.of(x))
    assert found.shape == x.shape
    assert parts[0].nbytes + parts[1].nbytes == Standard(bits).nbytes(x.shape, x.dtype)
    assert len(parts) == (3 if centred else 4)
    if bits == 8 and x.numel():  # nothing is clipped
        assert float(((found - x) * rstd).abs().max()) < 0.4


@pytest.mark.parametrize(("bits", "optimum"), [(8, 0.0065), (4, 0.0975), (3, 0.186), (2, 0.343)])  # Max 1960
def test_standard_codec_is_near_the_optimum_for_gaussians(bits: int, optimum: float) -> None:
    x, scale = torch.randn(32, 8, 16, 16), torch.tensor([1e-3, 1, 1, 1, 1, 1, 1, 1e3]).view(-1, 1, 1)
    found = Standard(bits).decode(Standard(bits).encode(x * scale, Context(rstd=1 / scale)), Like.of(x))
    assert relative(found / scale, x) < optimum * (1.25 if bits == 8 else 1.12)


@pytest.mark.parametrize("bits", BITS)
def test_standard_codec_never_hides_a_nan(bits: int) -> None:
    x = torch.randn(4, 3, 8, 8)
    x[0, 1, 0, 0], x[0, 2, 0, 0] = math.nan, math.inf
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    for parts in (
        Standard(bits).encode(x, Context(mean=mean, rstd=torch.rsqrt(var))),
        Standard(bits).encode(x, Context(rstd=torch.rsqrt(var))),
    ):
        found = Standard(bits).decode(parts, Like.of(x))
        assert found[:, 0].isfinite().all()
        assert found[:, 1:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_standard_codec_gives_dtype_and_strides_back(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 5, 4).to(dtype)
    rstd = torch.ones(1, 6, 1, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for y in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 3)):
        found = Standard(8).decode(Standard(8).encode(y, Context(rstd=rstd)), Like.of(y, memory_order(y)))
        assert (found.dtype, found.stride()) == (y.dtype, y.stride())
        assert relative(found.double(), y.double()) < 0.02


@pytest.mark.parametrize("bits", BITS)
def test_zero_codec_keeps_zeros_and_only_zeros(bits: int) -> None:
    x = torch.relu(torch.randn(5, 3, 8, 8))
    x[0, 0, 0, :3] = torch.tensor([1e-30, math.inf, math.nan])
    upper = ~(x <= 0)
    codec = Zero(bits)
    found, decided = codec.decode_with(codec.encode(x, Context(Predicate(upper))), Like.of(x))
    assert torch.equal(decided, upper)
    assert torch.equal(found == 0, x == 0)
    assert torch.equal(found.isnan(), x.isnan())
    assert torch.equal(found.isinf(), x.isinf())


@given(st.floats(2.0**-126, 2.0**127, width=32))
def test_a_bfloat16_by_its_bits_is_the_nearest_or_the_next_one_up(number: float) -> None:
    x = torch.tensor([number])
    nearest, up = round_to_bfloat16(x), round_to_bfloat16(x, up=True)
    assert all(torch.equal(found, found.bfloat16().float()) for found in (nearest, up))
    assert (nearest.double() - x).abs() <= (x.to(torch.bfloat16).double() - x).abs()
    assert x <= up.double() <= x.double() * (1 + 2**-7)


@pytest.mark.inductor
@pytest.mark.parametrize("bits", [pytest.param(8, marks=pytest.mark.long), 4])
def test_compiled_codes_are_those_of_the_stored_range(bits: int) -> None:
    """Inductor leaves a cast to bfloat16 and back out: codes would be of another radius than the one beside them."""
    x = torch.randn(512, 64)
    context = Context(Predicate(upper=x > 0))
    for codec in (Group(bits), Group(bits, skewed=True), Group(bits, hollow=True)):
        for eager, compiled in zip(codec.encode(x), torch.compile(codec.encode)(x), strict=True):
            assert torch.equal(eager, compiled)
    compiled_zero = torch.compile(lambda x, upper: Zero(bits).encode(x, Context(Predicate(upper=upper))))
    for eager, compiled in zip(Zero(bits).encode(x, context), compiled_zero(x, context.decision.upper), strict=True):
        assert torch.equal(eager, compiled)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 3), channels=st.integers(1, 6), size=st.sampled_from([(8, 8), (4, 16), (16, 20), (7, 9)]),
    bits=st.sampled_from(BITS), rounding=st.sampled_from(("nearest", "stochastic")), last=st.booleans(),
)  # fmt: skip
def test_codes_in_channels_last_memory_hold_the_same_groups(
    count: int, channels: int, size: tuple[int, int], bits: int, rounding: str, last: bool
) -> None:
    x = torch.randn(count, channels, *size)
    x[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, 0.0])
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    for codec in (Group(bits, rounding), Group(bits, skewed=True), Group(bits, rounding, hollow=True), Zero(bits)):
        value = x.relu() if isinstance(codec, Zero) else x
        like = Like.of(value, memory_order(value))
        here, there = (_code(c, value, like) for c in (codec, codec.for_channels_last()))
        assert codec.for_channels_last() != codec
        assert sum(part.nbytes for part in there.parts) == codec.nbytes(value.shape, value.dtype)
        assert all(part.is_contiguous() for part in there.parts)
        assert there.found.stride() == here.found.stride() == value.stride()
        torch.testing.assert_close(there.found, here.found, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(there.bound, here.bound, rtol=0, atol=0, equal_nan=True)


class Coded(NamedTuple):
    parts: tuple[torch.Tensor, ...]
    found: torch.Tensor
    bound: torch.Tensor


def _code(codec: Codec, x: torch.Tensor, like: Like) -> Coded:
    if isinstance(codec, Carrier):
        parts = codec.encode(x, Context(Predicate(~(x <= 0))))
        return Coded(parts, codec.decode_with(parts, like)[0], codec.bound(parts, like))
    parts = codec.encode(x)
    return Coded(parts, codec.decode(parts, like), codec.bound(parts, like))


def test_codec_options_are_checked() -> None:
    for wrong in (
        lambda: Group(5),
        lambda: Standard(5),
        lambda: Group(4, "up"),
        lambda: Cast(torch.int8),
        lambda: Cast(torch.float8_e4m3fn),
    ):
        with pytest.raises(OptionError, match="expected"):
            wrong()


@pytest.mark.parametrize("bits", BITS)
def test_a_nan_is_not_taken_for_zero(bits: int) -> None:
    """No comparison is true of a NaN: a predicate such as z > 0 says no more than that it is not above."""
    x = torch.randn(4, 64).relu()
    x[1, 3] = math.nan
    found, upper = Zero(bits).decode_with(Zero(bits).encode(x, Context(Predicate(x > 0))), Like.of(x))
    assert torch.equal(found.isnan(), x.isnan())
    assert torch.equal(upper, ~(x <= 0))


VALUES = {
    "bell-shaped": lambda: torch.randn(3, 4, 6, 7),
    "heavy-tailed": lambda: torch.randn(3, 4, 6, 7) ** 5,
    "far from zero": lambda: torch.randn(3, 4, 6, 7) + 1000,
    "constant": lambda: torch.full((3, 4, 6, 7), 0.3),
    "double": lambda: torch.randn(3, 4, 6, 7, dtype=torch.float64),
    "half": lambda: torch.randn(3, 4, 6, 7).to(torch.bfloat16),
    "at two ends": lambda: torch.randn(3, 4, 6, 7).sign() * (2 + torch.rand(3, 4, 6, 7)),
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", VALUES)
def test_what_comes_back_is_within_the_bound(kind: str, bits: int) -> None:
    x = VALUES[kind]()
    like = Like.of(x)
    kinds = ({}, {"uniform": True}, {"skewed": True}, {"hollow": True})
    groups = [Group(bits, rounding, **each) for each in kinds for rounding in ("nearest", "stochastic")]
    for codec in (*groups, Cast()):
        _require_within(codec.encode(x), codec, x, like)
    rectified = x.relu()
    _require_within(Zero(bits).encode(rectified, Context(Predicate(x > 0))), Zero(bits), rectified, like)
    var, mean = torch.var_mean(x.to(torch.float64 if kind == "double" else torch.float32), (0, 2, 3), keepdim=True)
    rstd = torch.rsqrt(var + 1e-5)
    _require_within(Standard(bits).encode(x, Context(mean=mean, rstd=rstd)), Standard(bits), x, like)
    for shift in (0.0, -0.7, 5.0, -9.0):
        upper = (x - mean) * rstd + shift > 0
        context = Context(Predicate(upper, torch.ones(4, 1, 1), torch.full((4, 1, 1), shift)), mean, rstd)
        _require_within(Threshold(bits).encode(x, context), Threshold(bits), x, like)
    _require_within(Threshold(bits).encode(x, Context(Predicate(x > 0))), Threshold(bits), x, like)


def _require_within(parts: tuple[torch.Tensor, ...], codec: Codec, x: torch.Tensor, like: Like) -> None:
    found = codec.decode_with(parts, like)[0] if isinstance(codec, Carrier) else codec.decode(parts, like)
    off, bound = (found.double() - x.double()).abs(), codec.bound(parts, like).double()
    assert bool((off <= bound).all()), f"{codec}: {off.flatten()[(off - bound).argmax()]}"
    if isinstance(codec, Group) and codec.rounding == "nearest" and not codec.skewed and float(x.std()) > 0.5:
        assert float(off.max()) > float(bound.max()) / 4  # no wider than it has to be


def test_statistics_in_bfloat16_give_the_types_that_tracing_sees() -> None:
    mean, rstd = torch.zeros(1, 4, 1, 1, dtype=torch.bfloat16), torch.ones(1, 4, 1, 1, dtype=torch.bfloat16)
    standard = Standard(8)

    def decoded(x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
        return standard.decode(standard.encode(x, Context(mean=mean, rstd=rstd)), Like.of(x))

    x = torch.randn(2, 4, 3, 3)
    found = decoded(x, mean, rstd)
    with adapter.fake_mode() as mode:
        traced = decoded(*(mode.from_tensor(value) for value in (x, mean, rstd)))
    assert traced.dtype == found.dtype
    assert (found - x).abs().max() < 0.2
