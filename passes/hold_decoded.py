"""Holds decoded images in memory where backward would hold what it computes from them.

Inductor decodes a value in each kernel that reads it. Where a long expression of it has several readers, Inductor puts
that into memory, and sums of a normalization's gradient, whose loops run across those of an image that lies
channels-last, get an image each, too. With the decoded value in memory, these expressions are short, and computed where
they are read. Elsewhere it would be there beside what is computed from it: so levels with and without are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from fxapprox.ir.tensors import flops, nbytes, tensor_of
from fxapprox.memory.timeline import timeline
from fxapprox.passes.materialize import read_from_memory
from fxapprox.sizes import evaluate

Levels = dict[int, int]
LARGE = 2**18  # bytes: below that, no level shows it


def hold_decoded(
    forward: fx.GraphModule, backward: fx.GraphModule, decoded: Collection[str], *,
    num_fwd_outputs: int, hints: Mapping[str, int],
) -> tuple[str, ...]:  # fmt: skip
    """Puts decoded values into memory where loops have less alive for it, and products no more.

    What products have alive beside them, such as a convolution's gradients, slices may still cut.

    Requires: the two graphs in the order in which they will run, under Inductor.
    Ensures: no value changes.
    Changes numerics: no.

    Args:
        decoded: names of the values in backward that decoders make.

    Returns: the names of those that are held.
    """
    nodes = [n for n in backward.graph.nodes if n.name in decoded and len(n.users) > 1 and _nbytes(n) >= LARGE]
    if not nodes:
        return ()
    nodes_by_name = {node.name: node for node in backward.graph.nodes}
    place = {name: at for at, name in enumerate(nodes_by_name)}

    def levels() -> tuple[Levels, Levels]:
        """The bytes alive, by place, in products and in loops."""
        found: tuple[Levels, Levels] = {}, {}
        for m in timeline(forward, backward, num_fwd_outputs=num_fwd_outputs).moments:
            if m.half == "backward":
                found[not flops(nodes_by_name[m.name])][place[m.name]] = evaluate(m.live, hints)
        return found

    before = levels()
    held = {node: read_from_memory(node) for node in nodes}
    after = levels()
    found = []
    for node, kept in held.items():
        alive = range(place[node.name], max(place[user.name] for user in kept.users) + 1)
        products, loops = (
            [max((level for at, level in each.items() if at in alive), default=0) for each in pair]
            for pair in zip(before, after, strict=True)
        )
        if products[1] <= products[0] and loops[1] < loops[0]:
            found.append(node.name)
        else:
            kept.replace_all_uses_with(node)
            backward.graph.erase_node(kept)
    return tuple(found)


def _nbytes(node: fx.Node) -> int:
    value = tensor_of(node)
    return 0 if value is None else nbytes(value)
