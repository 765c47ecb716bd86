"""Parts of a graph around a wide value that can be run slice by slice along one dimension.

Such a part is made of operators that make a slice of their result from slices of their operands (``ir/rows.py``); what
is read whole comes from outside. It ends where values become small again, or where the next operator wants all rows: in
rows, which slices give one behind the other, or in sums over the sliced dimension, which slices give summand by
summand. Logits, their softmax, their gradient and the products that read it are one; so are the decoded operand of a
convolution, the gradient that comes in, and the one that goes out. No operator is looked for by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.ir.arguments import operands
from fxapprox.ir.operator_table import Along
from fxapprox.ir.operators import (
    behind_views,
    is_cheap,
    is_pointwise,
    is_random,
    is_reduction,
    is_view,
    op_name,
    operator_of,
)  # fmt: skip
from fxapprox.ir.rows import Part, Rows, rows, sums
from fxapprox.ir.tensors import element_of, flops, has_fixed_sizes, nbytes, numel

NARROW = 64  # times fewer elements than the widest value: what is read as it is, and not remade in slices


@dataclass(frozen=True, slots=True)
class Steps:
    """How a value is sliced: the units [a : b] are its steps [a * per : b * per] along a dimension.

    Of a sum over slices it says which steps are added up; ``dim`` is None.
    """

    dim: int | None
    per: Fraction

    def of(self, part: Part) -> Steps:
        """How an operand is sliced of which the value's slices take this part."""
        return Steps(part.dim, self.per * part.times)


@dataclass(frozen=True)
class Region:
    """Operators that can be run slice by slice.

    Attributes:
        inside: how the result of each is sliced, in the order in which they run.
        takes: what a slice of each takes of its operands.
        units: how many there are.
        step: a slice has a multiple of so many units.
        wide: the large values that are never whole.
        remade: cheap values of the graph's inputs, as decoded codes are: what else reads them makes them anew.
    """

    inside: Mapping[fx.Node, Steps]
    takes: Mapping[fx.Node, Rows]
    units: int
    step: int
    wide: frozenset[fx.Node]
    remade: frozenset[fx.Node]

    @property
    def results(self) -> list[fx.Node]:
        """What others read of it, or of which they read a view: row by row, or sums."""
        own, views = (node for node in self.inside if node not in self.remade), set(self.views)
        return [node for node in own if node not in views and any(self._is_behind(user, views) for user in node.users)]

    @property
    def views(self) -> list[fx.Node]:
        """What others read that is a result of the part in another shape: they get it of the whole result."""
        found = set[fx.Node]()
        for node in reversed([*self.inside]):
            if self._is_result_in_another_shape(node) and any(self._is_behind(user, found) for user in node.users):
                found.add(node)
        return [node for node in self.inside if node in found]

    def _is_behind(self, node: fx.Node, views: Set[fx.Node]) -> bool:
        return node not in self.inside or node in views

    def _is_result_in_another_shape(self, node: fx.Node) -> bool:
        """Whether it shows all elements of a value of the part, wherever that lies in memory."""
        if operator_of(node).rows not in (Along.ORDER, Along.PERMUTED) or op_name(node) == "aten.as_strided":
            return False
        source = node.all_input_nodes[0]
        return is_view(node) and source in self.inside and self.remade.isdisjoint((node, source))

    @property
    def wide_bytes(self) -> int:
        """Bytes of what is never whole, if it were."""
        return sum(size_of(node) for node in self.wide if not is_view(node) and len(_values(node)) == 1)

    def within(self, nodes: Mapping[str, fx.Node]) -> Region:
        """The same part of a copy of the graph, given the copy's nodes by name."""
        inside = {nodes[node.name]: along for node, along in self.inside.items()}
        takes = {nodes[node.name]: taken for node, taken in self.takes.items()}
        wide, remade = (frozenset(nodes[node.name] for node in each) for each in (self.wide, self.remade))
        return replace(self, inside=inside, takes=takes, wide=wide, remade=remade)


def products(graph: fx.Graph) -> list[fx.Node]:
    """The products around which parts are looked for: all of fixed sizes."""
    return [node for node in graph.nodes if flops(node) and width_of(node)]


def size_of(node: fx.Node) -> int:
    """Bytes of the result, or the largest of several; 0 where they are not fixed."""
    return max((nbytes(value) for value in _values(node) if has_fixed_sizes(value)), default=0)


def width_of(product: fx.Node) -> int:
    """Bytes of the largest value that a product makes, or reads; an input is there anyway."""
    read = (source for source in product.all_input_nodes if behind_views(source).op == "call_function")
    return max(map(size_of, (product, *read)))


def _values(node: fx.Node) -> list[Any]:
    value = node.meta.get("val")
    return [each for each in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(each, Tensor)]


def _elements(node: fx.Node) -> int:
    return max((numel(value) for value in _values(node)), default=0)


def _rank(seed: fx.Node) -> int:
    value = element_of(seed)
    return value.dim() if value is not None else 1


def _remade(graph: fx.Graph) -> dict[fx.Node, int]:
    """{what cheap operators make of inputs and small values: elements of the widest value on the way}."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op != "call_function" or is_random(node) or adapter.mutates(node):
            continue
        made = [s for s in node.all_input_nodes if s.op == "call_function" and NARROW * _elements(s) > _elements(node)]
        if (is_cheap(node) or is_pointwise(node) or is_reduction(node)) and all(source in found for source in made):
            found[node] = max([_elements(node), *(found[source] for source in made)])
    return found


class _Conflict(Exception):
    """A value was taken to be sliced in a way that others do not agree with: it has to come from outside."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


class Search:
    """Looks for the separable parts of one graph; no operator is in two, but for what is remade."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph, self.remade = graph, _remade(graph)
        self._ways: dict[fx.Node, list[tuple[int | None, Rows]]] = {}
        self.taken: set[fx.Node] = set()

    def regions(self, seeds: Iterable[fx.Node]) -> Iterator[Region]:
        """The parts around these products, in this order."""
        for seed in seeds:
            if seed in self.taken:
                continue
            around = (self.around(seed, dim) for dim in range(_rank(seed)))
            if found := [region for region in around if region is not None]:
                best = max(found, key=lambda region: region.wide_bytes)
                self.taken |= best.inside.keys() - best.remade
                yield best

    def around(self, seed: fx.Node, dim: int) -> Region | None:
        """The part around one product, sliced along a dimension of its result; None if there is none."""
        first = dict(self.ways_of(seed)).get(dim)
        if first is None:
            return None
        outside = set(self.taken)
        while True:
            try:
                return _Growth(self, seed, {seed: (first, Steps(dim, Fraction(1)))}, outside).region()
            except _Conflict as conflict:
                if conflict.node is seed:
                    return None
                outside.add(conflict.node)

    def rows(self, node: fx.Node, dim: int) -> Rows | None:
        """As ``ir.rows.rows``."""
        return dict(self.ways_of(node)).get(dim)

    def ways_of(self, node: fx.Node) -> Sequence[tuple[int | None, Rows]]:
        """(the dimension of the result that is sliced, what that takes); None: slices are added up."""
        if node not in self._ways:
            values = _values(node)
            fixed = bool(values) and all(map(has_fixed_sizes, values)) and node.op == "call_function"
            found = ((dim, rows(node, dim)) for dim in range(max(v.dim() for v in values))) if fixed else ()
            self._ways[node] = [(dim, taken) for dim, taken in found if taken is not None]
            self._ways[node] += [(None, taken) for taken in (sums(node) if fixed else ())]
        return self._ways[node]


@dataclass
class _Growth:
    """One part while it grows from a product.

    Attributes:
        core: what is sliced because it is the product, or because a wide value is made of it.
        outside: what has to come from outside.
        takes, along: of all that is sliced.
        remade: of that, what is made of nothing else that is sliced.
    """

    search: Search
    seed: fx.Node
    core: dict[fx.Node, tuple[Rows, Steps]]
    outside: set[fx.Node]
    takes: dict[fx.Node, Rows] = field(default_factory=dict)
    along: dict[fx.Node, Steps] = field(default_factory=dict)
    remade: set[fx.Node] = field(default_factory=set)

    def region(self) -> Region | None:
        """The part, once it grows no more; None if nothing wide stays inside."""
        while True:
            self._flow()
            wide = {node for node, each in self.along.items() if each.dim is not None and self._is_wide(node)}
            inner = _leading_to(wide | {self.seed}, self.along)
            ends = {end for node in wide for user in node.users for end in self._ends_of(user, inner)}
            if not self._pull(inner | ends):
                break
        whole = _leading_to(inner | ends, self.along)
        several = [user for node in whole if not _is_one(node) for user in node.users]
        if not self.along.keys() >= set(several):
            return None  # a result of several is wanted whole
        whole.update(several)
        inside = {node: self.along[node] for node in self._small_first([n for n in self.along if n in whole])}
        remade = frozenset(self.remade & inside.keys())
        hidden = frozenset(n for n in wide if n in inside and (n in remade or n.users.keys() <= inside.keys()))
        if not hidden:
            return None
        takes = {node: self.takes[node] for node in inside}
        step = math.lcm(*(each.per.denominator for each in _slices(inside, takes)))
        return Region(inside, takes, self._units(), step, hidden, remade)

    def _small_first(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """The order in which they run: what is small as soon as it can be made, or the wide value behind it stays."""
        place = {node: (i, 0) for i, node in enumerate(nodes)}
        for node in nodes:
            if NARROW * _elements(node) <= self._width:
                place[node] = max((place[s] for s in node.all_input_nodes if s in place), default=place[node])
                place[node] = place[node][0], place[node][1] + 1
        return sorted(nodes, key=place.__getitem__)

    def _ends_of(self, node: fx.Node, inner: set[fx.Node]) -> set[fx.Node]:
        """The node, if it is computed from what is inside and outside, not in between; its results too, if several."""
        sources = (source for source in node.all_input_nodes if source in self.along)
        if node not in self.along or not all(source in inner or source in self.remade for source in sources):
            return set()
        if _is_one(node):
            return {node}
        return {node, *node.users} if self.along.keys() >= node.users.keys() else set()

    def _units(self) -> int:
        taken, own = self.core[self.seed]
        cut = ((operand, part.dim) for operand, part in zip(_operands(self.seed), taken.parts, strict=True) if part)
        whole, dim = (self.seed, own.dim) if element_of(self.seed) is not None else next(cut)
        value = element_of(whole)
        assert value is not None
        assert dim is not None
        return value.shape[dim]

    def _flow(self) -> None:
        """Finds anew what slices of the core make slices of, or sum up to: all up to where rows are wanted whole.

        What is remade leads nowhere: whatever else reads it makes it anew.

        Raises:
            _Conflict: a part of the core depends on what has to be whole, or is sliced otherwise by what it reads.
        """
        self.takes, self.along, self.remade = {}, {}, set()
        behind: set[fx.Node] = set()
        for node in self.search.graph.nodes:
            if node in self.core:
                taken, own = self.core[node]
                if not behind.isdisjoint(node.all_input_nodes) or not self._fits(node, taken, own):
                    raise _Conflict(node)
                self.takes[node], self.along[node] = taken, own
                if node in self.search.remade and not self._leads_to(node):
                    self.remade.add(node)
            elif not behind.isdisjoint(node.all_input_nodes) or (
                self._leads_to(node) and (node in self.search.taken or not self._follow(node))
            ):
                behind.add(node)
            if node in self.along and flops(_maker(node)) and _is_one(node) and not self._is_wide(node):
                behind.add(node)  # a part ends where products make small values again

    def _leads_to(self, node: fx.Node) -> bool:
        return any(source in self.along and source not in self.remade for source in node.all_input_nodes)

    def _follow(self, node: fx.Node) -> bool:
        """Slices a node by its operands; whether that is possible."""
        for dim, taken in self.search.ways_of(node):
            pers = {
                self.along[operand].per / part.times for operand, part in zip(_operands(node), taken.parts, strict=True)
                if operand in self.along and part is not None
            }  # fmt: skip
            if len(pers) == 1 and self._fits(node, taken, own := Steps(dim, pers.pop())):
                self.takes[node], self.along[node] = taken, own
                return True
        return False

    def _fits(self, node: fx.Node, taken: Rows, own: Steps) -> bool:
        """Whether the parts that it takes are the slices that there are; what is remade can be had whole, too."""
        for operand, part in zip(_operands(node), taken.parts, strict=True):
            if operand in self.along and (self.along[operand] != own.of(part) if part else operand not in self.remade):
                return False
        return True

    def _pull(self, inner: set[fx.Node]) -> bool:
        """Adds wide operands that come from elsewhere and can be made slice by slice as well: masks, other products,
        what is decoded.

        Returns: whether there were any.

        Raises:
            _Conflict: one is taken in slices along two dimensions.
        """
        before, stack = len(self.core), list(inner)
        while stack:
            node = stack.pop()
            taken, own = self.core[node] if node in self.core else (self.takes[node], self.along[node])
            for operand, part in zip(_operands(node), taken.parts, strict=True):
                if part is None or operand.op != "call_function" or operand in self.outside:
                    continue
                if operand in self.core and self.core[operand][1] != own.of(part):
                    raise _Conflict(operand)
                if operand in self.core or operand in self.along or not self._is_worth(operand, node):
                    continue
                if (found := self.search.rows(operand, part.dim)) is not None:
                    self.core[operand] = found, own.of(part)
                    stack.append(operand)
        return len(self.core) > before

    def _is_worth(self, operand: fx.Node, reader: fx.Node) -> bool:
        """Whether an operand is sliced for its size, or for that of what it is made of, or what is made of it."""
        widest = self.search.remade.get(operand, 0)
        chain = reader in self.search.remade and NARROW * widest >= self._width
        return self._is_wide(operand) or 2 * widest > self._width or chain

    def _is_wide(self, node: fx.Node) -> bool:
        """Whether it has as many elements as the widest value at the product, or nearly."""
        return 2 * _elements(node) > self._width

    @property
    def _width(self) -> int:
        taken, _ = self.core[self.seed]
        cut = (operand for operand, part in zip(_operands(self.seed), taken.parts, strict=True) if part)
        return max(map(_elements, (self.seed, *cut)))


def _is_one(node: fx.Node) -> bool:
    """Whether its result is one tensor."""
    return isinstance(node.meta["val"], Tensor)


def _maker(node: fx.Node) -> fx.Node:
    """The operator of several results of which this is one, or itself."""
    return node.all_input_nodes[0] if operator_of(node).rows is Along.RESULT else node


def _operands(node: fx.Node) -> list[fx.Node]:
    return [operand for _, operand in operands(node)]


def _leading_to(wide: set[fx.Node], along: Mapping[fx.Node, Steps]) -> set[fx.Node]:
    """What slices flow through on the way to wide values, these among them."""
    found, stack = set[fx.Node](), list(wide)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += (source for source in node.all_input_nodes if source in along)
    return found


def _slices(inside: Mapping[fx.Node, Steps], takes: Mapping[fx.Node, Rows]) -> Iterator[Steps]:
    """How all results and operands are sliced."""
    for node, along in inside.items():
        yield along
        yield from (along.of(part) for part in takes[node].parts if part is not None)
