"""Symbolic sizes: one graph for many batches, and byte counts that hold for each of them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional as F

import fxapprox
from fxapprox.codecs import Cast, Codec, Copy, Exact, Group, Identity, Integer, Like, Mask, Threshold, Zero
from fxapprox.measure.memory import stored_bytes
from fxapprox.sizes import SizeSymbol, evaluate, renamed, resolve
from fxapprox.torch_adapter import FakeTensorMode, trace
from tools.zoo.training import gradients, relative

BATCHES = (2, 3, 5, 8, 9)
N = sympy.Symbol("n", integer=True, positive=True)
ONE = (SizeSymbol("n", 8, "x.size(0)", 2, 15),)
TWO = (*ONE, SizeSymbol("m", 4, "x.size(1)", 1, None))


class Halves(nn.Module):
    """A part of a tensor is saved, its rest is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(33, 63), nn.Linear(31, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[:, :31])


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 3, 3), nn.Flatten()
    )  # fmt: skip


def rectifiers() -> nn.Module:
    return nn.Sequential(nn.Linear(33, 65), nn.ReLU(), nn.Linear(65, 63), nn.ReLU(), nn.Linear(63, 8))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(33, 65), nn.GELU(), nn.Dropout(0.5), nn.Linear(65, 8))


IMAGES, ROWS = (3, 13, 13), (33,)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Codec | None, type[Codec]]] = {
    "threshold": (convolutions, IMAGES, None, Threshold),
    "integer": (convolutions, IMAGES, None, Integer),
    "zero": (rectifiers, ROWS, None, Zero),
    "group": (smooth, ROWS, None, Group),
    "mask": (smooth, ROWS, None, Mask),
    "cast": (smooth, ROWS, Cast(torch.bfloat16), Cast),
    "identity": (convolutions, IMAGES, Identity(), Identity),
    "exact": (rectifiers, ROWS, Exact(), Exact),
    "copy": (Halves, ROWS, Exact(), Copy),
}


def held_and_run(model: nn.Module, run: Callable[..., Tensor], x: Tensor) -> int:
    out = run(x)
    held = stored_bytes(out, exclude=[*model.parameters(), *model.buffers(), x])
    out.square().mean().backward()
    return held


@pytest.mark.parametrize(
    ("name", "bits"), [*((name, 4) for name in CASES), ("threshold", 2), ("threshold", 8), ("zero", 2), ("group", 8)]
)
def test_planned_bytes_are_those_stored_at_every_batch(name: str, bits: int) -> None:
    build, shape, codec, expected = CASES[name]
    torch.manual_seed(0)
    model = build()
    run = fxapprox.compile(
        model, bits=bits, dynamic=True, min_bytes=0, policy=lambda _: codec, lowering="eager", strict=True
    )
    held = {batch: held_and_run(model, run, torch.randn(batch, *shape)) for batch in BATCHES}
    (report,) = fxapprox.reports(run)
    assert any(expected.label in d.storage for d in report.decisions), [d.storage for d in report.decisions]
    batch_of = next(s.name for s in report.sizes if s.source.endswith(".size(0)"))
    others = {s.name: s.hint for s in report.sizes}
    assert {batch: report.at({**others, batch_of: batch}).saved_bytes for batch in BATCHES} == held
    assert report.saved_bytes == held[BATCHES[0]]


@pytest.mark.parametrize(
    "codec", [Exact(), Copy(), Identity(), Mask(), Integer(0, 3), Integer(0, 300), Cast(), Group(4), Zero(2)]
)
def test_a_codec_counts_its_bytes_in_symbols(codec: Codec) -> None:
    dtype = {Mask: torch.bool, Integer: torch.int64}.get(type(codec), torch.float32)
    size = codec.nbytes((N, 3, 5, 7), dtype)
    assert not isinstance(size, int)
    for batch in range(1, 12):
        assert evaluate(size, {"n": batch}) == codec.nbytes((batch, 3, 5, 7), dtype)


@pytest.mark.parametrize("build", [convolutions, rectifiers, Halves])
def test_one_graph_serves_many_batches(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, shape = build(), IMAGES if build is convolutions else ROWS
    run = fxapprox.compile(model, bits=None, dynamic=True, min_bytes=0, lowering="eager", strict=True)
    for batch in range(2, 10):
        x = torch.randn(batch, *shape)
        found = []
        for call in (model, run):
            model.zero_grad()
            held_and_run(model, call, x)
            found.append(gradients(model))
        assert relative(found[1], found[0]) < 1e-5
    assert len(fxapprox.reports(run)) == 1


@pytest.mark.inductor
def test_one_graph_serves_many_batches_under_inductor() -> None:
    torch.manual_seed(0)
    model = rectifiers()
    run = fxapprox.compile(model, bits=4, dynamic=True, min_bytes=0, strict=True)
    held = {batch: held_and_run(model, run, torch.randn(batch, *ROWS)) for batch in (4, 7, 9)}
    (report,) = fxapprox.reports(run)
    assert {batch: report.at(batch).saved_bytes for batch in held} == held


def test_explain_says_the_same_at_every_batch() -> None:
    model = convolutions()
    told = fxapprox.explain(model, torch.randn(4, *IMAGES), bits=4, dynamic=True, min_bytes=0)
    sizes = {s.name: s.hint for s in told.sizes}
    name = next(s.name for s in told.sizes if s.source == "input.size(0)")
    for batch in (2, 7):
        static = fxapprox.explain(model, torch.randn(batch, *IMAGES), bits=4, min_bytes=0)
        found = told.at({**sizes, name: batch})
        assert found.baseline_bytes == static.baseline_bytes
        assert sum(d.bytes_after for d in (*found.decisions, *found.copies)) == found.saved_bytes
        assert static.sizes == ()
        assert static.saved_expr == static.saved_bytes


def test_marked_dimensions_only() -> None:
    model, x = rectifiers(), torch.randn(8, 33)
    torch._dynamo.mark_dynamic(x, 0)
    before = [t.clone() for t in model.state_dict().values()]
    report = fxapprox.explain(model, x, bits=4, dynamic=None, min_bytes=0)
    (size,) = report.sizes
    assert (size.source, size.hint) == ("input.size(0)", 8)
    assert report.at(16).saved_bytes == evaluate(report.saved_expr, {size.name: 16})
    assert report.at(16).decisions[0].shape[0] == 16
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_text_and_json_have_the_expressions() -> None:
    report = fxapprox.explain(rectifiers(), torch.randn(8, 33), bits=4, dynamic=True, min_bytes=0)
    (size,) = report.sizes
    text, data = " ".join(str(report.at(64)).split()), json.loads(report.to_json())
    assert f"= {report.saved_expr} bytes" in text
    assert f"{size.name} = input.size(0), here 64; this graph serves 2 or more" in text
    assert data["saved_expr"] == str(report.saved_expr)
    assert data["sizes"] == [{"name": size.name, "hint": 8, "source": "input.size(0)", "low": 2, "high": None}]
    assert all(isinstance(d["expr_after"], str) for d in data["decisions"])


def test_sums_of_graphs_have_sizes_too() -> None:
    first, second = nn.Linear(33, 33), nn.Linear(33, 33)

    def broken(x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(first(x))
        torch._dynamo.graph_break()
        return second(F.gelu(h)).sum() + second(F.silu(y)).sum()

    args = torch.randn(8, 33), torch.randn(4, 33)
    report = fxapprox.explain(broken, *args, bits=8, dynamic=True, min_bytes=0)
    assert len(report.graphs) == 2
    values = {s.name: 2 * s.hint for s in report.sizes}
    double = report.at(values)
    static = fxapprox.explain(broken, torch.randn(16, 33), torch.randn(8, 33), bits=8, min_bytes=0)
    assert double.baseline_bytes == static.baseline_bytes
    assert static.saved_bytes <= double.saved_bytes <= 1.2 * static.saved_bytes  # groups of symbolic sizes are others
    assert sum(graph.saved_bytes for graph in double.graphs) == double.saved_bytes


@pytest.mark.parametrize(
    ("given", "symbols", "message"),
    [
        (8, (), "dynamic=True"),
        (8, TWO, "several sizes.*n = x.size.0., m = x.size.1."),
        ({"k": 8}, ONE, "unknown size 'k'"),
        ({"n": 8}, TWO, "'m' is missing"),
        (1, ONE, "serves 2 to 15"),
        (16, ONE, "serves 2 to 15"),
        (0, ONE, "an int of at least 1"),
        (4.0, ONE, "an int of at least 1"),
        (True, ONE, "an int of at least 1"),
        (7, ONE, "Eq.Mod.n, 2., 0. only"),
    ],
)
def test_sizes_are_checked(given: object, symbols: tuple[SizeSymbol, ...], message: str) -> None:
    even = sympy.Eq(sympy.Mod(N, 2), 0)
    with pytest.raises(fxapprox.OptionError, match=message):
        resolve(given, symbols, [even])  # type: ignore[arg-type]


def test_symbols_can_be_renamed() -> None:
    assert evaluate(renamed(3 * N + 1, {"n": "k"}), {"k": 5}) == 16
    assert renamed(3 * N, {"m": "k"}) == 3 * N


def test_a_symbol_that_a_guard_has_fixed_is_a_number() -> None:
    """A Longformer encoder-decoder's batch, which torch fixes while it traces the joint graph."""
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    mode = FakeTensorMode(shape_env=ShapeEnv())
    x = mode.from_tensor(torch.empty(4, 8), symbolic_context=context)
    assert isinstance(Like.of(x).shape[0], torch.SymInt)
    assert x.shape[0] == 4  # the guard
    assert [type(size) for size in Like.of(x).shape] == [int, int]


def fields(dims: int) -> nn.Module:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norms = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
    layers = convolution(3, 8, 3, padding=1), norms[0], nn.SiLU(), convolution(8, 8, 3), norms[1], nn.ReLU()
    return nn.Sequential(*layers, convolution(8, 2, 1))


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.01), (4, 0.2)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_height_and_width_may_be_symbolic(dims: int, bits: int, limit: float) -> None:
    torch.manual_seed(0)
    model = fields(dims)
    run = fxapprox.compile(model, bits=bits, dynamic=True, min_bytes=0, lowering="eager", strict=True)
    for sizes in ((2, 41, 7, 5), (3, 70, 6, 11)):
        x = torch.randn(sizes[0], 3, *sizes[1 : dims + 1])
        found = []
        for call in (model, run):
            model.zero_grad()
            held = held_and_run(model, call, x)
            found.append(gradients(model))
        assert relative(found[1], found[0]) < limit
        (report,) = fxapprox.reports(run)
        places = {s.name: 0 if s.source.endswith("size(0)") else int(s.source[-2]) - 1 for s in report.sizes}
        at = report.at({name: sizes[place] for name, place in places.items()})
        assert at.saved_bytes == held
    assert report.ratio > 10 / bits * 3


class Pixels(nn.Module):
    """Pixels as the rows of a matrix: their number is a product of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(torch.tanh(self.convolution(x)).permute(0, 2, 3, 1).reshape(-1, 8)))


@pytest.mark.parametrize("width", [8, 11])
def test_products_of_sizes_may_have_any_number_of_factors(width: int) -> None:
    """At width 8 two of the factors are one symbol: its square."""
    model = Pixels()
    run = fxapprox.compile(model, bits=4, dynamic=True, min_bytes=0, lowering="eager", strict=True)
    held = held_and_run(model, run, torch.randn(2, 3, 8, width))
    (report,) = fxapprox.reports(run)
    assert {d.how.codec.bits for d in report.decisions if d.how.codec is not None} == {4}
    assert report.saved_bytes == held


@pytest.mark.parametrize("codec", [Group(8), Group(2), Group(4, rounding="stochastic"), Group(8, skewed=True)])
@pytest.mark.parametrize("special", [0.0, float("nan"), float("inf")])
def test_groups_across_symbolic_sizes_hold_what_groups_do(codec: Group, special: float) -> None:
    shape_env = ShapeEnv()
    mode = FakeTensorMode(shape_env=shape_env)
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 3)
    torch.manual_seed(0)
    x = torch.rand(3, 5, 29)
    x[1, 2, 3] = special
    fake = mode.from_tensor(x, symbolic_context=context)
    with enable_python_dispatcher():
        coded = trace(lambda x: codec.decode(codec.encode(x), Like.of(x)), [fake], mode)
    for shape in ((3, 5, 29), (2, 3, 31), (4, 32, 8)):
        y = torch.rand(shape)
        y[1, 2, 3] = special
        back = coded(y)
        odd = ~y.isfinite()
        assert torch.equal(back[odd].isnan(), y[odd].isnan())
        away = {8: 0.02, 4: 0.2, 2: 0.6}[codec.bits]
        assert float((back - y)[~odd].abs().max()) < away
    assert all(guard.expr.subs(dict.fromkeys(guard.expr.free_symbols, 99)) for guard in shape_env.guards)
