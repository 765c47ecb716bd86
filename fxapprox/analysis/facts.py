"""What is known of each forward value before anything is asked of it.

One walk along the joint graph, in its order: every fact about a node follows from its operator and from the facts about
its operands. How backward reads the values comes afterwards, against that order (``reads.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.intervals import Interval, interval
from fxapprox.analysis.selected import ceilings
from fxapprox.ir.arguments import argument, operands
from fxapprox.ir.joint import Joint
from fxapprox.ir.operators import (
    is_cheap,
    is_contraction,
    is_known,
    is_label,
    is_pointwise,
    is_reduction,
    is_view,
    op_name,
    operator_of,
    table_use,
)
from fxapprox.ir.records import Use
from fxapprox.ir.tensors import is_float, numel, storage_of, tensor_of

SMALL = 4  # times smaller than the activation that it was computed from
WIDE = 8  # times larger than its operand


@dataclass(frozen=True)
class Facts:
    """What is known of the forward nodes.

    Attributes:
        ops: name of the operator.
        sizes: number of elements, of every tensor.
        floats: its tensor is of floating point.
        bounds: the interval that its elements lie in.
        depends: whether training moves it: it depends on a parameter or a float input.
        roots: which values, not cheap to compute, it is made of.
        free: it is alive during backward anyway.
        fixed: it follows from parameters and buffers alone, by operators that backward may run again: casts, views.
        wide: it is many times larger than what it is computed from: logits over a vocabulary, and sums of such.
        statistics: it is small next to the activations it came from.
        decisions: it is a branch taken on a float that training moves: a mask, an index, a sign.
        checkpointed: the user wants it computed again in backward.
        saved: it is marked to be saved, and no view: it goes from one checkpointed region into another, or the user's
            policy, or torch (collectives, effects), says so.
        heavy: it comes through operators of a checkpointed region that are not cheap, and is not marked to be saved.
        entering: a checkpointed region computes it not itself, but reads it, or what shows all of it.
        again: backward may run its operator again.
        pointwise: nobody has described its operator, but torch says that it is pointwise: backward may run it again on
            exact operands.
        gradients: it is a gradient that forward computes.
        ceilings: it is an exponential that is read only where its operand is at most this.
        changed: it is an input that forward changes in place, or a view of one: backward would find the new value.
    """

    ops: dict[fx.Node, str] = field(default_factory=dict)
    sizes: dict[fx.Node, int] = field(default_factory=dict)
    floats: set[fx.Node] = field(default_factory=set)
    bounds: dict[fx.Node, Interval] = field(default_factory=dict)
    depends: set[fx.Node] = field(default_factory=set)
    roots: dict[fx.Node, frozenset[fx.Node]] = field(default_factory=dict)
    free: set[fx.Node] = field(default_factory=set)
    fixed: set[fx.Node] = field(default_factory=set)
    wide: set[fx.Node] = field(default_factory=set)
    statistics: set[fx.Node] = field(default_factory=set)
    decisions: set[fx.Node] = field(default_factory=set)
    checkpointed: set[fx.Node] = field(default_factory=set)
    saved: set[fx.Node] = field(default_factory=set)
    heavy: set[fx.Node] = field(default_factory=set)
    entering: set[fx.Node] = field(default_factory=set)
    again: set[fx.Node] = field(default_factory=set)
    pointwise: set[fx.Node] = field(default_factory=set)
    gradients: set[fx.Node] = field(default_factory=set)
    ceilings: dict[fx.Node, float] = field(default_factory=dict)
    changed: set[fx.Node] = field(default_factory=set)

    @classmethod
    def of(cls, joint: Joint) -> Facts:
        """The facts about a joint graph's forward values."""
        saved = {n for n in joint.forward_values if adapter.must_save(n) and not is_view(n)}
        facts = cls(changed=adapter.changed_inputs(joint.gm.graph), saved=saved, ceilings=ceilings(joint))
        inputs = joint.gm.graph.find_nodes(op="placeholder")
        facts.fixed.update(inputs[at] for at in joint.static_inputs if at < len(inputs))
        alive = joint.alive
        for node in joint.forward_values:
            _add(facts, node, alive)
            if node.name in joint.gradients:
                facts.gradients.add(node)
        return facts

    def made_of(self, *nodes: fx.Node, through: Callable[[fx.Node], bool]) -> set[fx.Node]:
        """What training moves of what values are made of, with them: operands of what the walk goes through."""
        stack, found = [*nodes], set[fx.Node]()
        while stack:
            node = stack.pop()
            if node in found or node not in self.depends or node in self.free:
                continue
            found.add(node)
            if through(node):
                stack += node.all_input_nodes
        return found

    def is_product_of_activations(self, node: fx.Node) -> bool:
        """Whether the node is a contraction, and none of its factors a parameter or an input."""
        return is_contraction(node) and not any(part in self.free for part in node.all_input_nodes)


def _add(facts: Facts, node: fx.Node, alive: Collection[fx.Node]) -> None:
    """Adds what is known of a node; its operands have been added."""
    value, sources, cheap = tensor_of(node), node.all_input_nodes, is_cheap(node)
    facts.ops[node] = op_name(node)
    if value is not None:
        facts.sizes[node] = numel(value)
        if is_float(value.dtype):
            facts.floats.add(node)
    if adapter.must_recompute(node) and node not in facts.saved:
        facts.checkpointed.add(node)
        for source in (s for s in sources if adapter.region_of(s) != adapter.region_of(node)):
            base = storage_of(source)
            facts.entering.update({source, base} if facts.sizes.get(base) == facts.sizes.get(source) else {source})
    if node not in facts.saved and (any(s in facts.heavy for s in sources) if cheap else node in facts.checkpointed):
        facts.heavy.add(node)
    if node in alive or (is_view(node) and node in facts.sizes and argument(node, 0) in facts.free):
        facts.free.add(node)
    if is_view(node) and any(source in facts.changed for source in sources):
        facts.changed.add(node)
    if (node.op == "placeholder" and node in facts.floats) or any(s in facts.depends for s in _read(node)):
        facts.depends.add(node)
    facts.bounds[node] = interval(node, facts.bounds)
    facts.roots[node] = _roots(node, facts)
    if _is_statistic(node, facts):
        facts.statistics.add(node)
    if _is_decision(node, facts):
        facts.decisions.add(node)
    projects = _is_wide_projection(node, facts)
    if cheap or projects or node in facts.checkpointed:
        facts.again.add(node)
    elif not is_known(node) and is_pointwise(node):
        facts.pointwise.add(node)
    if node.op == "call_function" and node in facts.again and all(source in facts.fixed for source in sources):
        facts.fixed.add(node)
    if projects or _is_made_of_wide(node, facts):
        facts.wide.add(node)


def _read(node: fx.Node) -> Iterable[fx.Node]:
    """The operands of which more is read than the shape."""
    return (source for place, source in operands(node) if table_use(node, place) is not Use.SHAPE)


def _is_wide_projection(node: fx.Node, facts: Facts) -> bool:
    """Whether a product with a parameter is many times larger than what it is made from: logits over a vocabulary.

    One more product costs less than keeping them, even in 8 bits (fewer than which a softmax does not get). The
    parameter may be cast, a part of another one, or a sum, as autocast and adapters of low rank make it.
    """
    if not operator_of(node).factors or node not in facts.sizes:
        return False
    sources = node.all_input_nodes
    made_of = [s for s in sources if s not in facts.free and s not in facts.fixed]
    if not made_of and all(source in facts.fixed for source in sources):
        made_of = sources  # the product of an adapter's two factors
    return bool(made_of) and all(s in facts.sizes and WIDE * facts.sizes[s] <= facts.sizes[node] for s in made_of)


def _is_made_of_wide(node: fx.Node, facts: Facts) -> bool:
    """Whether a cheap operator makes the node of wide values, and of what is small or follows from parameters alone."""
    if not is_cheap(node) or node not in facts.sizes:
        return False
    moving = [source for source in node.all_input_nodes if source not in facts.fixed]
    large = [source for source in moving if SMALL * facts.sizes.get(source, 0) > facts.sizes[node]]
    return bool(large) and all(source in facts.wide for source in large)


def _roots(node: fx.Node, facts: Facts) -> frozenset[fx.Node]:
    """The values, not cheap to compute, that a chain of cheap operators made this from; at most three."""
    if node in facts.free or node not in facts.depends:
        return frozenset()
    if not is_cheap(node):
        return frozenset((node,))
    size = facts.sizes.get(node, 0)
    merged: set[fx.Node] = set()
    for source in node.all_input_nodes:
        inner = facts.sizes.get(source)
        if inner is None or (size and inner * SMALL <= size):
            continue  # statistics and parameters ride along
        merged |= facts.roots[source]
    return frozenset(merged if len(merged) <= 3 else sorted(merged, key=lambda n: n.name)[:3])


def _is_statistic(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is a small reduction of an activation, or is computed from such alone (rstd from variance)."""
    if node not in facts.floats:
        return False
    maker = argument(node, 0) if facts.ops[node] == "getitem" else node
    source = argument(maker, 0)
    if is_reduction(maker) and isinstance(source, fx.Node):
        return source in facts.sizes and facts.sizes[node] * SMALL <= facts.sizes[source]
    if not is_cheap(node):
        return False
    moving = [source for source in node.all_input_nodes if source in facts.depends]
    made_of = [facts.sizes[source] for source in moving if source in facts.statistics]
    return bool(made_of) and len(made_of) == len(moving) and facts.sizes[node] <= max(made_of)


def _is_decision(node: fx.Node, facts: Facts) -> bool:
    """Whether the node is a branch taken on a float that training moves: a mask, an index, a sign."""
    if node not in facts.sizes or node.op != "call_function" or is_view(node):
        return False
    if node in facts.floats:
        return is_label(node)
    return any(source in facts.depends and source in facts.floats for source in node.all_input_nodes)
