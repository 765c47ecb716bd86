"""liveness: the predicted peak of a step, by hand, against the allocator, and for sizes that are not known yet."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.measure.memory import peak_bytes
from fxapprox.memory.timeline import Moment, Timeline, joined, timeline
from fxapprox.sizes import evaluate, hints_of
from tools.zoo import models

MIB = 2**20
SIZE = 4 * 64 * 64  # bytes of what the hand-made graphs compute with


def graph(build: Callable[[fx.Graph, Callable[[str], fx.Node], Callable[..., fx.Node]], list]) -> fx.GraphModule:
    """A graph over (64, 64) tensors; ``build`` is given the graph, a maker of inputs and one of calls."""
    made = fx.Graph()
    like = torch.empty(64, 64, device="meta")

    def given(name: str) -> fx.Node:
        node = made.placeholder(name)
        node.meta["val"] = like
        return node

    def call(target: object, *args: object) -> fx.Node:
        node = made.call_function(target, args)  # type: ignore[arg-type]
        node.meta["val"] = like
        return node

    made.output(tuple(build(made, given, call)))
    return fx.GraphModule({}, made)


def matmuls(count: int, *, save: bool) -> fx.GraphModule:
    """x, then a product with it again and again; each product is saved, or only the last is returned."""

    def build(_: fx.Graph, given: Callable[[str], fx.Node], call: Callable[..., fx.Node]) -> list:
        x = given("primals_1")
        values = [x]
        for _ in range(count):
            values.append(call(torch.ops.aten.mm.default, values[-1], x))
        return [values[-1], *(values[1:-1] if save else ())]

    return graph(build)


def nothing() -> fx.GraphModule:
    return graph(lambda _, given, call: [call(torch.ops.aten.neg.default, given("tangents_1"))])


@pytest.mark.parametrize("lowering", ["inductor", "eager"])
def test_a_chain_holds_two_links(lowering: str) -> None:
    found = timeline(matmuls(5, save=False), nothing(), num_fwd_outputs=1, lowering=lowering)
    assert [m.live for m in found.moments if m.half == "forward"] == [SIZE, *[2 * SIZE] * 4]
    assert found.after_forward == SIZE
    assert all(m.saved == 0 for m in found.moments)


def test_what_is_saved_stays() -> None:
    found = timeline(matmuls(5, save=True), nothing(), num_fwd_outputs=1)
    assert [m.live for m in found.moments if m.half == "forward"] == [n * SIZE for n in range(1, 6)]
    assert [m.saved for m in found.moments if m.half == "forward"] == [SIZE, 2 * SIZE, 3 * SIZE, 4 * SIZE, 4 * SIZE]
    assert found.peak({}) == found.peak_moment({}).live


def test_pointwise_results_live_in_their_readers() -> None:
    def build(_: fx.Graph, given: Callable[[str], fx.Node], call: Callable[..., fx.Node]) -> list:
        x = given("primals_1")
        h = call(torch.ops.aten.mm.default, x, x)
        for _ in range(4):
            h = call(torch.ops.aten.neg.default, h)
        return [call(torch.ops.aten.mm.default, h, x)]

    forward = graph(build)
    assert timeline(forward, nothing(), num_fwd_outputs=1).peak({}) == 2 * SIZE  # in place, then the product
    assert len(timeline(forward, nothing(), num_fwd_outputs=1).moments) == 4
    assert timeline(forward, nothing(), num_fwd_outputs=1, lowering="eager").peak({}) == 3 * SIZE


def test_a_place_is_taken_in_the_last_loop_that_reads_it() -> None:
    def build(_: fx.Graph, given: Callable[[str], fx.Node], call: Callable[..., fx.Node]) -> list:
        x = given("primals_1")
        h = call(torch.ops.aten.mm.default, x, x)
        return [call(torch.ops.aten.neg.default, h), call(torch.ops.aten.exp.default, h)]

    assert timeline(graph(build), nothing(), num_fwd_outputs=2).peak({}) == 3 * SIZE  # one loop reads h for both


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_on_the_cpu_loops_up_to_the_next_product_free_nothing(device: str) -> None:
    def build(made: fx.Graph, given: Callable[[str], fx.Node], call: Callable[..., fx.Node]) -> list:
        x = given("primals_1")
        total = call(torch.ops.aten.sum.default, call(torch.ops.aten.mm.default, x, x))
        ones = call(torch.ops.aten.full.default, [64, 64], 1.0)
        product = call(torch.ops.aten.mm.default, ones, x)
        for node in made.nodes:
            node.meta["val"] = torch.empty(() if node is total else (64, 64), device=device)
        return [total, product]

    moments = timeline(graph(build), nothing(), num_fwd_outputs=2).moments
    (live,) = (m.live for m in moments if m.name == "full_default")
    assert live == 4 + (2 if device == "cpu" else 1) * SIZE


@pytest.mark.parametrize("padding", [None, 0])
def test_a_gradient_that_is_scattered_is_made_in_one_piece(padding: int | None) -> None:
    """Of an embedding: the zeros that it is added to are not a value of their own."""
    table, tokens = nn.Embedding(4096, 64, padding_idx=padding), torch.randint(4096, (64,))
    report = fxapprox.explain(lambda ids: table(ids).square().mean(), tokens, bits=None)
    assert table.weight.nbytes <= report.peak_bytes < 1.1 * table.weight.nbytes


def test_graphs_one_after_the_other() -> None:
    part = Timeline((Moment("a", "forward", 5, 0), Moment("b", "backward", 7, 0)), after_forward=3, after_backward=1)
    both = joined([part, part])
    assert [m.live for m in both.moments] == [5, 8, 10, 8]
    assert (both.after_forward, both.after_backward) == (6, 2)


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [layer for _ in range(4) for layer in (nn.Linear(128, 128), nn.GELU(), nn.LayerNorm(128))]
    return nn.Sequential(*layers), torch.randn(1024, 128)


def small_cnn() -> tuple[nn.Module, Tensor]:
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(16, 16, 32, 32)


def group_norms() -> tuple[nn.Module, Tensor]:
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.GELU())]
    return nn.Sequential(*layers), torch.randn(16, 16, 32, 32)


def upsampled() -> tuple[nn.Module, Tensor]:
    def block(given: int, made: int) -> list[nn.Module]:
        return [nn.Conv2d(given, made, 3, padding=1), nn.GroupNorm(4, made), nn.SiLU()]

    layers = [*block(16, 16), nn.AvgPool2d(2), *block(16, 32), nn.Upsample(scale_factor=2), *block(32, 16)]
    return nn.Sequential(*layers), torch.randn(16, 16, 32, 32)


def measured(model: nn.Module, x: Tensor, **options: object) -> tuple[int, int]:
    """(predicted, real) peak of a step with the loss inside."""

    def loss(x: Tensor) -> Tensor:
        return model(x).square().mean()

    compiled = fxapprox.compile(loss, **options)
    compiled(x).backward()
    model.zero_grad(set_to_none=True)
    real = peak_bytes(lambda: compiled(x).backward()).peak
    (report,) = fxapprox.reports(compiled)
    return report.peak_bytes, real


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("build", [mlp, small_cnn])
def test_the_real_peak_run_operator_by_operator(
    build: Callable[[], tuple[nn.Module, Tensor]], bits: int | None
) -> None:
    torch.manual_seed(0)
    predicted, real = measured(*build(), bits=bits, lowering="eager")
    assert abs(predicted / real - 1) < 0.05


@pytest.mark.inductor
@pytest.mark.parametrize("bits", [pytest.param(None, marks=pytest.mark.long), 4])
def test_the_real_peak_under_inductor(bits: int | None) -> None:
    torch.manual_seed(0)
    model, x = mlp()
    predicted, real = measured(model, x, bits=bits)
    # which temporaries of one kernel Inductor fuses away is not told to the last: one of x's size may be missed
    assert abs(predicted - real) < 0.05 * real + x.nbytes


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("build", "bits"),
    [
        (group_norms, 4),
        *(pytest.param(*case, marks=pytest.mark.long) for case in
          [(small_cnn, None), (small_cnn, 4), (group_norms, None), (group_norms, 8), (upsampled, 8)]),
    ],
)  # fmt: skip
def test_the_real_peak_of_convolutions(build: Callable[[], tuple[nn.Module, Tensor]], bits: int | None) -> None:
    """Copies into another layout, results in place of operands, scatters: each would be an image more or less."""
    torch.manual_seed(0)
    predicted, real = measured(*build(), bits=bits, slices=None)
    assert abs(predicted / real - 1) < 0.02


class Wide(nn.Module):
    """Rows longer than a group, an activation that is recomputed for two products, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(128, 512) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(1024, 128) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            h = up(x)
            x = x + down(torch.cat([F.gelu(h, approximate="tanh"), F.silu(h)], -1))
        return x


@pytest.mark.inductor
def test_nothing_is_held_for_reuse_and_long_rows_are_decoded_once() -> None:
    torch.manual_seed(0)
    predicted, real = measured(Wide(), torch.randn(1024, 128), bits=8)
    assert abs(predicted / real - 1) < 0.05


def test_symbolic_sizes() -> None:
    torch.manual_seed(0)
    model, x = mlp()
    dynamic = fxapprox.explain(model, x, bits=4, dynamic=True)
    for batch in (256, 4096):
        static = fxapprox.explain(model, torch.randn(batch, 128), bits=4)
        assert dynamic.at(batch).peak_bytes == pytest.approx(static.peak_bytes, rel=0.02)
        assert dynamic.at(batch).baseline_peak_bytes == pytest.approx(static.baseline_peak_bytes, rel=0.02)


def test_the_report_has_both_peaks() -> None:
    case = models.demo_resnet()
    report = fxapprox.explain(case.model, *case.args, bits=4)
    assert report.saved_bytes < report.peak_bytes < report.baseline_peak_bytes
    data = json.loads(report.to_json())
    assert (data["peak_bytes"], data["baseline_peak_bytes"]) == (report.peak_bytes, report.baseline_peak_bytes)
    assert "peak: " in str(report)


def alive(found: Timeline, at: int, values: dict[str, int]) -> tuple[int, int]:
    """(bytes of all lives, of those that are saved) at one moment."""
    there = [life for life in found.lives if life.start <= at and (life.until is None or at < life.until)]
    sizes = [(evaluate(life.size, values), life.kind) for life in there]
    return sum(size for size, _ in sizes), sum(size for size, kind in sizes if kind == "saved")


@pytest.mark.parametrize("lowering", ["inductor", "eager"])
@pytest.mark.parametrize("build", [models.mlp_dropout, models.demo_resnet, models.gpt])
def test_lives_add_up_to_the_level(build: Callable[[], models.Case], lowering: str) -> None:
    case = build()
    report = fxapprox.explain(lambda *args: case.loss(case.model(*args)), *case.args, bits=4, lowering=lowering)
    own, plain = report.timeline, report.baseline_timeline()
    for found in (own, plain):
        assert [alive(found, at, {})[1] for at in range(len(found.moments))] == [m.saved for m in found.moments]
    for found in (own, plain, joined([own, plain, own])):
        assert [alive(found, at, {})[0] for at in range(len(found.moments))] == [m.live for m in found.moments]
        staying = sum(evaluate(life.size, {}) for life in found.lives if life.until is None)
        assert staying == found.after_backward


def test_lives_of_a_dynamic_batch() -> None:
    model, x = mlp()
    report = fxapprox.explain(model, x, bits=4, dynamic=True).at(256)
    values = hints_of(report.sizes)
    for at, moment in enumerate(report.timeline.moments):
        assert alive(report.timeline, at, values)[0] == evaluate(moment.live, values)


def test_a_life_spans_both_halves() -> None:
    found = timeline(matmuls(3, save=True), nothing(), num_fwd_outputs=1)
    kinds = [(life.name, life.kind, life.start, life.until) for life in found.lives]
    assert kinds == [
        ("mm_default", "saved", 0, None), ("mm_default_1", "saved", 1, None), ("mm_default_2", "output", 2, None),
        ("neg_default", "gradient", 3, None),  # in place of the tangent
    ]  # fmt: skip


def test_views_of_one_memory_are_freed_with_the_last() -> None:
    """Plain torch.compile saves q, k and v, which are parts of one product."""

    def parts(made: fx.Graph, given: Callable[[str], fx.Node], call: Callable[..., fx.Node]) -> list:
        x = given("primals_1")
        product = call(torch.ops.aten.mm.default, x, x)
        halves = [call(torch.ops.aten.slice.Tensor, product, 0, at, at + 32) for at in (0, 32)]
        for half in halves:
            half.meta["val"] = torch.empty(32, 64, device="meta")
        return [call(torch.ops.aten.mm.default, product, x), *halves]

    def readers(made: fx.Graph, given: Callable[[str], fx.Node], call: Callable[..., fx.Node]) -> list:
        halves, tangent = [given("slice_tensor"), given("slice_tensor_1")], given("tangents_1")
        for half in halves:
            half.meta["val"] = torch.empty(32, 64, device="meta")
        made_from = [call(torch.ops.aten.mm.default, half, tangent) for half in halves]
        return [call(torch.ops.aten.mm.default, made_from[1], tangent)]

    found = timeline(graph(parts), graph(readers), num_fwd_outputs=1)
    (saved,) = [life for life in found.lives if life.kind == "saved"]
    assert (saved.size, saved.start, saved.until) == (SIZE, 0, 4)


def test_what_moments_do() -> None:
    case = models.gpt(layers=4, batch=8)
    report = fxapprox.explain(case.model, *case.args, bits=4, checkpoint=3)
    backward = [m for m in report.timeline.moments if m.half == "backward"]
    assert {m.role for m in backward} == {"operator", "again", "codec"}
    assert {m.op for m in backward if m.role == "again"} >= {"aten.addmm"}
    assert {m.role for m in report.baseline_timeline().moments if m.half == "forward"} == {"operator"}
    assert any(m.module == "blocks.0.qkv" for m in report.timeline.moments)
