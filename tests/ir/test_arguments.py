"""Arguments by the schema's names: an operator means the same by position, by keyword and at its defaults."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fxapprox.analysis.intervals import interval, span_of
from fxapprox.ir.arguments import argument, arguments, operands
from fxapprox.ir.operator_table import TABLE
from fxapprox.ir.operators import operator_of, table_use
from tests.passes.graphs import training
from tools.zoo.training import gradients, relative

# what an argument of a type is given as
GIVEN: dict[str, Any] = {
    "int": 1, "SymInt": 1, "float": 0.5, "bool": True, "number": 2, "str": "none", "ScalarType": torch.float32,
    "Device": torch.device("cpu"), "Layout": torch.strided, "MemoryFormat": torch.contiguous_format,
}  # fmt: skip


def overloads(name: str) -> Iterator[Any]:
    """Every overload of an operator that changes none of its operands."""
    space, _, short = name.partition(".")
    packet = getattr(getattr(torch.ops, space), short, None) if short else None
    for each in packet.overloads() if packet is not None else ():
        found = getattr(packet, each)
        if not found._schema.is_mutable and "Dimname" not in str(found._schema):
            yield found


def value_of(kind: str, graph: fx.Graph) -> Any:
    """Something of a schema's type: a node for a tensor."""
    kind = kind.removeprefix("Optional[").rstrip("]") if kind.startswith("Optional") else kind
    if kind.startswith("List["):
        return [value_of(kind[5:].rstrip("]"), graph) for _ in range(2)]
    if kind == "Tensor":
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = torch.empty(3, 5, device="meta")
        return node
    return GIVEN.get(kind)


def calls(target: Any) -> list[fx.Node]:
    """One call of an operator: by position where it can be, by keywords alone, and with what has a default left out."""
    graph = fx.Graph()
    schema = target._schema.arguments
    given = [
        a.default_value if a.has_default_value() and str(a.type) != "Optional[Tensor]" else value_of(str(a.type), graph)
        for a in schema
    ]
    pairs = list(zip(schema, given, strict=True))
    named = {a.name: value for a, value in pairs}
    kept = {a.name: v for a, v in pairs if not a.has_default_value() or isinstance(v, fx.Node)}
    ways: list[tuple[list, dict]] = [
        ([v for a, v in pairs if not a.kwarg_only], {a.name: v for a, v in pairs if a.kwarg_only}),
        ([], named),
        ([], kept),
    ]
    made = [graph.call_function(target, tuple(args), kwargs) for args, kwargs in ways]
    for node in made:
        node.meta["val"] = torch.empty(3, 5, device="meta", dtype=torch.int64 if operator_of(node).indices else None)
    return made


def test_an_operator_means_the_same_however_its_arguments_are_given() -> None:
    targets = [target for name in sorted(TABLE) for target in overloads(name)]
    assert len(targets) > 200
    for target in targets:
        found = []
        for node in calls(target):
            picked = node.graph.call_function(operator.getitem, (node, 1))
            picked.meta["val"] = torch.empty(3, 5, device="meta", dtype=torch.int64)
            uses = {(place, operand.name, table_use(node, place)) for place, operand in operands(node)}
            found.append((uses, interval(node, {}), span_of(node), span_of(picked), arguments(node)))
        assert found[0] == found[1] == found[2], target


def test_an_argument_is_found_by_name_place_keyword_and_default() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    stable = graph.call_function(torch.ops.aten.sort.stable, (x,), {"stable": True, "dim": 0})
    assert [argument(stable, name) for name in ("self", "stable", "dim", "descending")] == [x, True, 0, False]
    assert [argument(stable, place) for place in range(5)] == [x, True, 0, False, None]
    assert argument(stable, "keepdim", "none") == "none"
    assert arguments(stable) == (x, True, 0, False)
    assert list(operands(graph.call_function(torch.ops.aten.cat.default, ([x, x],)))) == [(0, x), (0, x)]
    weighted = graph.call_function(torch.ops.aten.mul.Tensor, (), {"other": x, "self": 2})
    assert list(operands(weighted)) == [(1, x)]


# --- integers lie where their code expects them ------------------------------------------------


def choosers(shape: tuple[int, ...], draw: Callable[[st.SearchStrategy], Any]) -> Callable[[Tensor], Any]:
    """A call of an operator that chooses among elements, with any dimension, by position or by keyword."""
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    size, keep = shape[dim], draw(st.booleans())
    k = draw(st.integers(1, size))
    aten, pools = torch.ops.aten, torch.nn.functional
    window = draw(st.integers(1, 3))
    pool = {"kernel_size": window, "stride": draw(st.integers(1, 3)), "padding": window // 2, "return_indices": True}
    out = draw(st.integers(1, 3))
    made: list[Callable[[Tensor], Any]] = [
        partial(torch.sort, dim=dim), partial(torch.sort, dim=dim, stable=True), partial(torch.argsort, dim=dim),
        partial(torch.argsort, dim=dim, stable=True, descending=keep), partial(torch.topk, k=k, dim=dim),
        lambda x: x.topk(k, dim), partial(torch.max, dim=dim, keepdim=keep), lambda x: x.min(dim, keep),
        partial(torch.argmax, dim=dim, keepdim=keep), lambda x: x.argmin(dim, keep), torch.argmax, torch.argmin,
        partial(torch.kthvalue, k=k, dim=dim, keepdim=keep), lambda x: x.kthvalue(k, dim),
        partial(torch.mode, dim=dim), partial(torch.median, dim=dim, keepdim=keep),
        partial(torch.nanmedian, dim=dim), partial(torch.cummax, dim=dim), lambda x: x.cummin(dim),
        torch.sign, torch.sgn, torch.msort, torch.unique, partial(torch.unique, return_inverse=True),
        lambda x: aten.sort.stable(x, stable=None, dim=dim), lambda x: aten.sort.default(self=x, dim=dim),
        lambda x: aten.max.dim(self=x, dim=dim), lambda x: aten.topk.default(x, k=k, dim=dim),
    ]  # fmt: skip
    if len(shape) >= 3:
        made += [
            lambda x: pools.max_pool2d(x, **pool), lambda x: pools.adaptive_max_pool2d(x, out, True),
            lambda x: pools.max_pool1d(x.flatten(1), **pool),
            lambda x: pools.adaptive_max_pool1d(x.flatten(1), out, True),
        ]  # fmt: skip
        if min(shape[-2:]) >= 3:
            made.append(lambda x: pools.fractional_max_pool2d(x, 2, output_size=2, return_indices=True))
    if len(shape) >= 4:
        made += [
            lambda x: pools.max_pool3d(x, **pool),
            lambda x: pools.adaptive_max_pool3d(x, out, True),
        ]  # fmt: skip
        if min(shape[-3:]) >= 3:
            made.append(lambda x: pools.fractional_max_pool3d(x, 2, output_size=2, return_indices=True))
    return draw(st.sampled_from(made))


class Checked(fx.Interpreter):
    """Runs a graph, and holds every integer whose range is known against that range."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        span = span_of(n)
        if span is not None and isinstance(value, Tensor) and value.numel():
            low, high = int(value.min()), int(value.max())
            assert span[0] <= low <= high <= span[1], n.format_node()
        return value


@settings(max_examples=150, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_integers_lie_in_their_span(data: st.DataObject, shape: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randint(-3, 4, shape).float()
    if data.draw(st.booleans()):
        x[x == 2] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    call = choosers(tuple(shape), data.draw)
    try:
        call(x)
    except (RuntimeError, IndexError):
        return  # no such pool for this shape
    gm = make_fx(call)(x)
    Checked(gm).run(x)


SORTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sort": lambda h, dim: h.sort(dim).values,
    "stable sort": lambda h, dim: torch.sort(h, dim=dim, stable=True, descending=True).values,
    "stable argsort": lambda h, dim: h.gather(dim, torch.argsort(h, dim=dim, stable=True)),
    "topk": lambda h, dim: h.topk(3, dim).values,
    "topk by keyword": lambda h, dim: torch.topk(h, k=3, dim=dim, largest=False).values,
    "max": lambda h, dim: torch.max(h, dim=dim, keepdim=True).values,
    "min": lambda h, dim: h.min(dim).values,
    "argmax": lambda h, dim: h.gather(dim, torch.argmax(h, dim=dim, keepdim=True)),
    "kthvalue": lambda h, dim: torch.kthvalue(h, 3, dim=dim).values,
    "median": lambda h, dim: torch.median(h, dim=dim).values,
    "mode": lambda h, dim: torch.mode(h, dim=dim).values,
    "cummax": lambda h, dim: torch.cummax(h, dim).values,
}


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", SORTS)
def test_gradients_through_indices_along_any_dimension(name: str, dim: int) -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = SORTS[name](self.first(x), dim)
            return (h * torch.linspace(0, 1, h.numel()).view(h.shape)).square().sum()

    torch.manual_seed(0)
    model, x = Chosen(), torch.randn(7, 300, 8)
    model(x).backward()
    train = training(model, x)
    for bits, limit in ((None, 1e-5), (8, 0.02)):
        assert relative(train(bits=bits).gradient, gradients(model)) < limit, bits
