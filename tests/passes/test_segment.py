"""segment: where boundaries lie, on graphs small enough to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxapprox.ir.operators import op_name
from fxapprox.ir.tensors import nbytes, tensor_of
from fxapprox.passes.segment import Cut, _Problem, needed_for, segment

X = torch.randn(64)


def graph_of(fn: Callable[..., object], *args: Tensor) -> fx.GraphModule:
    return make_fx(fn, tracing_mode="fake")(*(args or (X,)))


def made(gm: fx.GraphModule) -> list[fx.Node]:
    return gm.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)


def chain(x: Tensor) -> Tensor:
    for _ in range(16):
        x = x.sin()
    return x


def residual(x: Tensor) -> Tensor:
    x = x.cos()
    for _ in range(12):
        x = x + x.sin().sin().sin()
    return x


def unet(x: Tensor) -> Tensor:
    first = x.sin().sin().sin()
    second = first[:32].sin().sin().sin()
    third = second[:16].sin().sin().sin().sin().sin().sin()
    second = (torch.cat([third, third]) + second).sin().sin().sin()
    return (torch.cat([second, second]) + first).sin().sin().sin()


def names(cuts: tuple[Cut, ...]) -> list[list[str]]:
    return [[op_name(node) for node in cut.carried] for cut in cuts]


def test_a_chain_is_cut_into_even_pieces_of_one_value_each() -> None:
    gm = graph_of(chain)
    cuts = segment(gm, made(gm), 4)
    assert names(cuts) == [["aten.sin"]] * 3
    places = [0, *(cut.at for cut in cuts), len(gm.graph.nodes)]
    lengths = np.diff(places)
    assert lengths.max() - lengths.min() <= 4
    assert all(cut.carried[0].next is list(gm.graph.nodes)[cut.at] for cut in cuts)


def test_a_residual_stream_is_carried_by_one_value() -> None:
    """The last cut may lie inside a branch: what it carries is alive together with one segment only."""
    gm = graph_of(residual)
    for count in (3, 5, "sqrt"):
        *cuts, last = names(segment(gm, made(gm), count))  # type: ignore[arg-type]
        assert cuts
        assert all(carried == ["aten.add"] for carried in cuts)
        assert last[0] == "aten.add"


def test_open_skips_are_carried_too() -> None:
    gm = graph_of(unet)
    order = list(gm.graph.nodes)
    skips = [next(n for n in order if tensor_of(n) is not None and n.name == name) for name in ("sin_2", "sin_5")]
    cuts = segment(gm, made(gm), 8)
    deepest = [cut for cut in cuts if order.index(skips[1]) < cut.at <= order.index(skips[1]) + 6]
    assert deepest
    for cut in deepest:
        assert set(skips) <= set(cut.carried)


@pytest.mark.parametrize("fn", [chain, residual, unet])
@pytest.mark.parametrize("count", [2, 5, "sqrt"])
def test_everything_behind_a_cut_can_be_computed_from_it(fn: Callable[[Tensor], Tensor], count: int) -> None:
    gm = graph_of(fn)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    cuts = segment(gm, made(gm), count)
    assert cuts
    for cut in cuts:
        behind = [node for node in made(gm) if order[node] >= cut.at]
        assert all(order[node] >= cut.at for node in needed_for(behind, cut.carried))


def test_sqrt_makes_no_cut_where_nothing_is_gained() -> None:
    short = graph_of(lambda x: x.sin().sin())
    assert segment(short, made(short), "sqrt") == ()
    nothing = graph_of(lambda x: x + 1)
    assert segment(nothing, [], "sqrt") == ()
    assert segment(nothing, [], 4) == ()


def test_a_smaller_share_of_the_peak_computes_less_again() -> None:
    """What is behind the last cut is not computed again."""
    gm = graph_of(residual)
    last = [segment(gm, made(gm), share)[-1].at for share in (0.1, 0.5, 0.9, "sqrt")]  # type: ignore[arg-type]
    assert last == sorted(last)
    assert last[0] < last[-1]
    short = graph_of(lambda x: x.sin().sin())
    assert segment(short, made(short), 0.5) == ()


def test_more_segments_than_places_are_as_many_as_there_are() -> None:
    gm = graph_of(chain)
    assert 0 < len(segment(gm, made(gm), 1000)) <= 16
    assert segment(gm, made(gm), 1) == ()


def test_sizes_of_codes_decide_what_is_worth_a_cut() -> None:
    """With boundaries that cost a quarter, more of them pay."""
    gm = graph_of(chain)
    sizes = {node: nbytes(value) // 4 for node in made(gm) if (value := tensor_of(node)) is not None}
    assert len(segment(gm, made(gm), "sqrt", sizes=sizes)) > len(segment(gm, made(gm), "sqrt"))


def test_a_view_is_carried_by_its_base() -> None:
    def views(x: Tensor) -> Tensor:
        for _ in range(6):
            x = x.sin().view(8, 8).t().sin().reshape(64)
        return x

    gm = graph_of(views)
    for count in (3, 6, "sqrt"):
        for cut in segment(gm, made(gm), count):  # type: ignore[arg-type]
            assert not {op_name(n) for n in cut.carried} & {"aten.view", "aten.t", "aten.transpose"}


def test_what_follows_from_inputs_alone_is_not_carried() -> None:
    gm = graph_of(lambda x, w: chain(x.sin() @ w.t()).sin(), torch.randn(8, 8), torch.randn(8, 8))
    for cut in segment(gm, made(gm), 4):
        assert names((cut,)) == [["aten.sin"]]


def test_no_cut_between_an_operator_with_several_results_and_its_results() -> None:
    def pairs(x: Tensor) -> Tensor:
        for _ in range(6):
            values, indices = x.view(8, 8).sort(1)
            x = (values.sin() + indices).view(64).sin()
        return x

    gm = graph_of(pairs)
    nodes = list(gm.graph.nodes)
    for count in (3, 6, 1000):
        cuts = segment(gm, made(gm), count)
        assert cuts
        for cut in cuts:
            assert op_name(nodes[cut.at]) != "getitem" or op_name(nodes[cut.at - 1]) not in ("aten.sort", "getitem")
            assert all(tensor_of(node) is not None for node in cut.carried)


def test_no_cut_between_the_parts_of_a_code() -> None:
    gm = graph_of(chain)
    values = made(gm)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for count in (4, 1000):
        cuts = segment(gm, values, count, together=[values[2:9]])
        assert cuts
        assert not any(order[values[2]] < cut.at <= order[values[8]] for cut in cuts)


def test_what_is_at_hand_needs_no_boundary() -> None:
    gm = graph_of(residual)
    kept = set(gm.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor))
    assert not any(kept & set(cut.carried) for cut in segment(gm, made(gm), 4, kept=kept))


# --- the search against trying everything --------------------------------------------------------


def problem(added: list[list[int]], peak: list[list[int]]) -> _Problem:
    n = len(added)
    upper = np.triu(np.ones((n, n), bool), 1)
    cuts = tuple(Cut(i, ()) for i in range(n))
    return _Problem(cuts, np.where(upper, added, np.inf), np.where(upper, peak, np.inf))


def paths(n: int, count: int | None) -> Iterator[tuple[int, ...]]:
    for size in range(n - 1) if count is None else [min(count, n - 1) - 1]:
        yield from combinations(range(1, n - 1), size)


def peak_of(given: _Problem, path: tuple[int, ...]) -> float:
    """The most that is there in any segment: all boundaries up to it, and what it works with."""
    at, carried, most = 0, 0.0, 0.0
    for to in (*path, len(given.cuts) - 1):
        most = max(most, carried + given.peak[at, to])
        carried += given.added[at, to]
        at = to
    return most


def found(cuts: tuple[Cut, ...]) -> tuple[int, ...]:
    return tuple(cut.at for cut in cuts)


def tables(n: int) -> st.SearchStrategy[list[list[int]]]:
    row = st.lists(st.integers(1, 100), min_size=n, max_size=n)
    return st.lists(row, min_size=n, max_size=n)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 6).flatmap(lambda n: st.tuples(tables(n), tables(n), st.integers(1, 7))))
def test_no_other_cuts_have_a_lower_peak(data: tuple[list[list[int]], list[list[int]], int]) -> None:
    added, peak, count = data
    given_problem = problem(added, peak)
    n = len(added)
    own = found(given_problem.with_segments(count))
    assert len(own) == min(count, n - 1) - 1
    assert peak_of(given_problem, own) == min(peak_of(given_problem, path) for path in paths(n, count))
    lowest = found(given_problem.lowest_peak())
    best = min(peak_of(given_problem, path) for path in paths(n, None))
    assert peak_of(given_problem, lowest) == best or (lowest == () and best > 0.98 * given_problem.peak[0, -1])
