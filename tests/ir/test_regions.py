"""Regions: what is alike becomes calls of one function, at its place and under its names, and no bit changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.operators import op_name
from fxapprox.ir.regions import Region, replace_by_calls
from fxapprox.torch_adapter import FakeTensorMode


def graph_of(function: Callable[..., object], *inputs: Tensor) -> fx.GraphModule:
    mode = FakeTensorMode()
    return adapter.trace(function, [mode.from_tensor(x) for x in inputs], mode)


def regions_of(gm: fx.GraphModule, *operators: str) -> list[Region]:
    """A region from each of the first of these operators to the next of the last."""
    found: list[list[fx.Node]] = []
    for node in gm.graph.nodes:
        if op_name(node) == operators[0]:
            found.append([])
        if op_name(node) in operators:
            found[-1].append(node)
    return [Region.of(nodes) for nodes in found]


def normalized(a: Tensor) -> Tensor:
    return a / a.abs().amax()


def drawn(x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """The graph that the module draws."""
    a = x @ v
    d = normalized(a)
    e = a @ w
    return e, d, normalized(e)


PARTS = ("aten.abs", "aten.amax", "aten.div")


def test_two_regions_become_calls_of_one_function() -> None:
    inputs = [torch.randn(4, 4) for _ in range(3)]
    gm = graph_of(drawn, *inputs)
    regions = regions_of(gm, *PARTS)
    assert [len(region.inputs) for region in regions] == [1, 1]
    assert all(region.can_be_called() for region in regions)
    assert regions[0].key() == regions[1].key()
    found = replace_by_calls(gm, "code", [(regions[0].function(gm), regions)], adapter.call_function)
    order = [op_name(n) for n in found.graph.nodes if op_name(n) in ("aten.mm", "invoke_subgraph")]
    assert order == ["aten.mm", "invoke_subgraph"] * 2
    assert [name for name, _ in found.named_children()] == ["code_0"]
    outputs = [[n.name for n in each.graph.find_nodes(op="output")[0].args[0]] for each in (gm, found)]
    assert outputs[0] == outputs[1]
    assert all(torch.equal(a, b) for a, b in zip(gm(*inputs), found(*inputs), strict=True))


def test_a_graph_without_regions_stays() -> None:
    gm = graph_of(normalized, torch.randn(4))
    assert replace_by_calls(gm, "code", [], adapter.call_function) is gm


def test_a_call_stands_before_whoever_reads_a_result_first() -> None:
    def early(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a = x.abs()
        b = a.sin()
        return b, a.amax(), y

    gm = graph_of(early, torch.randn(4), torch.randn(4))
    (region,) = regions_of(gm, "aten.abs", "aten.amax")
    assert op_name(region.place()) == "aten.sin"
    assert region.can_be_called()


def test_what_reads_a_later_value_cannot_be_called() -> None:
    def late(x: Tensor) -> Tensor:
        a = x.abs()
        return a / a.sin().amax()

    gm = graph_of(late, torch.randn(4))
    assert not regions_of(gm, "aten.abs", "aten.div")[0].can_be_called()
    assert regions_of(gm, "aten.abs", "aten.sin")[0].can_be_called()


def test_results_that_share_memory_cannot_be_called() -> None:
    def views(x: Tensor) -> tuple[Tensor, ...]:
        a = x.abs()
        return a, a.view(-1)

    gm = graph_of(views, torch.randn(4, 4))
    assert not regions_of(gm, "aten.abs", "aten.view")[0].can_be_called()


def test_regions_of_other_shapes_or_arguments_are_not_alike() -> None:
    def both(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return normalized(x), normalized(y)

    for other in (torch.randn(5), torch.randn(4, dtype=torch.float64)):
        first, second = regions_of(graph_of(both, torch.randn(4), other), *PARTS)
        assert first.key() != second.key()

    def powers(x: Tensor) -> tuple[Tensor, ...]:
        return x.abs() + 1, x.abs() + 2

    first, second = regions_of(graph_of(powers, torch.randn(4)), "aten.abs", "aten.add")
    assert first.key() != second.key()
