"""What crosses from forward to backward, changed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fxapprox.errors import UnsupportedGraph
from fxapprox.ir.crossing import Crossing
from fxapprox.ir.operators import op_name
from fxapprox.passes.rewrite import Rewrite
from tests.passes.graphs import Step, Traced, traced

W = torch.randn(32, 32, requires_grad=True)


@pytest.fixture
def call() -> Traced:
    return traced(lambda x: ((x @ W).sin() @ W).sin(), torch.randn(32, 32))


def plain(call: Traced) -> tuple[Rewrite, Step]:
    halves = call.split(bits=None)
    return halves, call.step(halves)


def returned(forward: fx.GraphModule) -> list[fx.Node]:
    return list(forward.graph.find_nodes(op="output")[0].args[0])


def test_saved_values_and_their_inputs_are_in_one_order(call: Traced) -> None:
    halves, _ = plain(call)
    crossing = Crossing(halves.forward, halves.backward, 1)
    assert list(crossing.inputs) == returned(halves.forward)[1:]
    assert [node.name for node in crossing.inputs] == [slot.name for slot in crossing.inputs.values()]


def test_one_value_in_the_place_of_another(call: Traced) -> None:
    """The negative of a saved product is saved instead of it, and negated again in backward."""
    halves, before = plain(call)
    crossing = Crossing(halves.forward, halves.backward, 1)
    product = next(node for node in crossing.inputs if op_name(node) == "aten.mm")
    slot, negate = crossing.inputs[product], torch.ops.aten.neg.default
    with halves.forward.graph.inserting_after(product):
        made = halves.forward.graph.call_function(negate, (product,))
    made.meta = product.meta.copy()
    taken = crossing.take(made)
    assert crossing.take(made) is taken
    with halves.backward.graph.inserting_before(min(slot.users)):
        slot.replace_all_uses_with(halves.backward.graph.call_function(negate, (taken,)))
    crossing.drop([product])
    crossing.write()
    for half in (halves.forward, halves.backward):
        half.graph.lint()
        half.recompile()
    assert product not in returned(halves.forward)
    assert returned(halves.forward)[-1] is made
    assert call.step(halves).same_as(before)


def test_own_outputs_stay_first(call: Traced) -> None:
    halves, _ = plain(call)
    own = returned(halves.forward)[0]
    crossing = Crossing(halves.forward, halves.backward, 1)
    crossing.take(halves.forward.graph.find_nodes(op="placeholder")[0])
    crossing.write()
    assert returned(halves.forward)[0] is own
    assert len(halves.forward.graph.find_nodes(op="output")[0].meta["desc"]) == len(returned(halves.forward))


def test_graphs_that_do_not_belong_together_are_refused(call: Traced) -> None:
    other = traced(lambda x: (x @ W).sin(), torch.randn(32, 32))
    with pytest.raises(UnsupportedGraph, match="forward saves"):
        Crossing(plain(call)[0].forward, plain(other)[0].backward, 1)
