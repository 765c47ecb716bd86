"""Parts of a graph around a wide value that can be run slice by slice along one dimension.

Such a part is made of operators that make a slice of their result from slices of their operands (``ir/rows.py``); what
is read whole comes from outside. It ends where values become small again: in rows, which slices give one behind the
other, or in sums over the sliced dimension, which slices give summand by summand. Logits, their softmax, their gradient
and the products that read it are one; no operator is looked for by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import fx

from fxapprox.ir.arguments import operands
from fxapprox.ir.rows import Part, Rows, rows, sums
from fxapprox.ir.tensors import flops, has_fixed_sizes, nbytes, numel, tensor_of


@dataclass(frozen=True, slots=True)
class Sliced:
    """How a value is sliced: the units [a : b] are its steps [a * per : b * per] along a dimension.

    Of a sum over slices it says which steps are added up; ``dim`` is None.
    """

    dim: int | None
    per: Fraction

    def of(self, part: Part) -> Sliced:
        """How an operand is sliced of which the value's slices take this part."""
        return Sliced(part.dim, self.per * part.times)


@dataclass(frozen=True)
class Region:
    """Operators that can be run slice by slice.

    Attributes:
        inside: how the result of each is sliced, in the graph's order.
        takes: what a slice of each takes of its operands.
        units: how many there are.
        step: a slice has a multiple of so many units.
        wide: the large values that are never whole.
    """

    inside: Mapping[fx.Node, Sliced]
    takes: Mapping[fx.Node, Rows]
    units: int
    step: int
    wide: frozenset[fx.Node]

    @property
    def results(self) -> list[fx.Node]:
        """What others read of it: row by row, or sums."""
        return [node for node in self.inside if any(user not in self.inside for user in node.users)]


def regions(graph: fx.Graph, smallest: int) -> Iterator[Region]:
    """The separable parts around the products of at least so many bytes, the widest first."""
    seeds = [node for node in graph.nodes if _size(node) >= smallest and flops(node)]
    taken: set[fx.Node] = set()
    for seed in sorted(seeds, key=_size, reverse=True):
        if seed in taken:
            continue
        around = (_around(graph, seed, dim) for dim in range(seed.meta["val"].dim()))
        found = [region for region in around if region is not None and region.inside.keys().isdisjoint(taken)]
        if found:
            best = max(found, key=lambda region: sum(map(_size, region.wide)))
            taken |= best.inside.keys()
            yield best


def _size(node: fx.Node) -> int:
    value = tensor_of(node)
    return nbytes(value) if value is not None and node.op == "call_function" and has_fixed_sizes(value) else 0


def _is_wide(node: fx.Node, seed: fx.Node) -> bool:
    """Whether it has as many elements as the product, or nearly."""
    value = tensor_of(node)
    return value is not None and 2 * numel(value) > numel(seed.meta["val"])


def _around(graph: fx.Graph, seed: fx.Node, dim: int) -> Region | None:
    """The part around one product, sliced along a dimension of its result; None if there is none."""
    first = rows(seed, dim)
    if first is None:
        return None
    takes, along = {seed: first}, {seed: Sliced(dim, Fraction(1))}
    while True:
        _flow(graph, takes, along)
        wide = {node for node, each in along.items() if each.dim is not None and _is_wide(node, seed)}
        inner = _leading_to(wide, along)
        if not _pull(inner, takes, along, seed):
            break
    behind = _behind(inner, graph)
    if any(source in behind and source not in inner for node in inner for source in node.all_input_nodes):
        return None  # something in between has to be whole
    ends = {
        user for node in wide for user in node.users
        if user not in inner and user in along
        and not any(source in behind and source not in inner for source in user.all_input_nodes)
    }  # fmt: skip
    inside = {node: along[node] for node in graph.nodes if node in inner or node in ends}
    hidden = frozenset(node for node in wide if node in inside and node.users.keys() <= inside.keys())
    if not hidden:
        return None
    takes = {node: takes[node] for node in inside}
    step = math.lcm(*(each.per.denominator for each in _slices(inside, takes)))
    return Region(inside, takes, seed.meta["val"].shape[dim], step, hidden)


def _flow(graph: fx.Graph, takes: dict[fx.Node, Rows], along: dict[fx.Node, Sliced]) -> None:
    """Adds what slices of the values that are there make slices of, or sum up to."""
    for node in graph.nodes:
        known = {source for source in node.all_input_nodes if source in along}
        if node in along or node.op != "call_function" or not known or any(along[n].dim is None for n in known):
            continue
        for out, found in _ways(node):
            if (per := _agreeing(node, found, along)) is not None:
                takes[node], along[node] = found, Sliced(out, per)
                break


def _ways(node: fx.Node) -> Iterator[tuple[int | None, Rows]]:
    """(the dimension of the result that is sliced, what that takes); None: slices are added up."""
    value = tensor_of(node)
    if value is None or not has_fixed_sizes(value):
        return
    for dim in range(value.dim()):
        if (found := rows(node, dim)) is not None:
            yield dim, found
    for found in sums(node):
        yield None, found


def _agreeing(node: fx.Node, taken: Rows, along: Mapping[fx.Node, Sliced]) -> Fraction | None:
    """The steps of a unit in a node's result, if the parts that it takes are the slices that there are."""
    found: set[Fraction] = set()
    for operand, part in zip(_operands(node), taken.parts, strict=True):
        if operand in along:
            if part is None or part.dim != along[operand].dim:
                return None
            found.add(along[operand].per / part.times)
    return found.pop() if len(found) == 1 else None


def _operands(node: fx.Node) -> list[fx.Node]:
    return [operand for _, operand in operands(node)]


def _leading_to(wide: set[fx.Node], along: Mapping[fx.Node, Sliced]) -> set[fx.Node]:
    """What slices flow through on the way to wide values, these among them."""
    found, stack = set[fx.Node](), list(wide)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += (source for source in node.all_input_nodes if source in along)
    return found


def _pull(inner: set[fx.Node], takes: dict[fx.Node, Rows], along: dict[fx.Node, Sliced], seed: fx.Node) -> bool:
    """Adds wide operands that come from elsewhere and can be made slice by slice as well: masks, other products.

    Returns: whether there were any.
    """
    before, stack = len(along), list(inner)
    while stack:
        node = stack.pop()
        for operand, part in zip(_operands(node), takes[node].parts, strict=True):
            if part is None or operand in along or operand.op != "call_function" or not _is_wide(operand, seed):
                continue
            found = rows(operand, part.dim)
            if found is not None:
                takes[operand], along[operand] = found, along[node].of(part)
                stack.append(operand)
    return len(along) > before


def _behind(nodes: Iterable[fx.Node], graph: fx.Graph) -> set[fx.Node]:
    """Everything that is computed from these nodes, and they themselves."""
    found = set(nodes)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _slices(inside: Mapping[fx.Node, Sliced], takes: Mapping[fx.Node, Rows]) -> Iterator[Sliced]:
    """How all results and operands are sliced."""
    for node, along in inside.items():
        yield along
        yield from (along.of(part) for part in takes[node].parts if part is not None)
