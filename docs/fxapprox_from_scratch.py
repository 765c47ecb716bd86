"""fxapprox from scratch: the idea in one file, without the library.

Training stores what backward will read. Here the training step of a small network is traced into one graph, cut in
two where the fewest bytes have to cross, and what crosses is stored in eight bits; decisions cross in one bit each.
The rest of fxapprox is about doing so for any model, without being silently wrong, as fast as not doing it. Run it:

    python docs/fxapprox_from_scratch.py

It prints

    backward reads 9 forward values: 2.02 MiB
    the cheapest cut stores 3: 1.02 MiB, as torch.compile would
    in codes the cheapest cut stores 4: 0.28 MiB
        mm       (512, 256)   8 bits
        gt       (512, 256)   1 bit
        mul      (512, 8)     8 bits
        t        (256, 512)   8 bits
    nothing is lost  the same loss, gradients 0.00% off
    eight bits       the same loss, gradients 0.18% off
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import networkx as nx
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

aten = torch.ops.aten

# --- 1. One graph for forward and backward --------------------------------------------------------
#
# A training step is a function: from the gradient of the loss (the tangent, in practice 1), a batch and weights, to
# the loss and the gradients of the weights. Tracing it gives a list of operators, the joint graph. torch.compile
# has the same one, from AOTAutograd.

torch.manual_seed(0)
BATCH, TARGETS = torch.randn(512, 64), torch.randn(512, 8)
WEIGHTS = [(torch.randn(a, b) / a**0.5).requires_grad_() for a, b in ((64, 256), (256, 256), (256, 8))]


def loss_of(batch: Tensor, weights: Sequence[Tensor]) -> Tensor:
    h = F.gelu(batch @ weights[0])
    h = h @ weights[1]
    h = torch.where(h > 0, h, 0.0)
    return (h @ weights[2] - TARGETS).square().mean()


def step(tangent: Tensor, batch: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    loss = loss_of(batch, weights)
    return loss, *torch.autograd.grad(loss, weights, tangent)


joint = make_fx(step)(torch.tensor(1.0), BATCH, *WEIGHTS)

# --- 2. Which half does an operator belong to? ----------------------------------------------------
#
# Backward is what depends on the tangent. Everything else can be computed without it, and is a forward value.

nodes = list(joint.graph.nodes)
tangent, output = nodes[0], nodes[-1]
backward = {tangent, output}
for node in nodes:
    if any(source in backward for source in node.all_input_nodes):
        backward.add(node)
inputs = {node for node in nodes if node.op in ("placeholder", "get_attr")}
wanted = {source for node in backward - {output} for source in node.all_input_nodes} - backward - inputs


def nbytes(node: fx.Node) -> float:
    """Bytes of the value, from the example that the graph was traced with."""
    return node.meta["val"].nbytes


def mib(count: float) -> str:
    return f"{count / 2**20:.2f} MiB"


print(f"backward reads {len(wanted)} forward values: {mib(sum(map(nbytes, wanted)))}")

# --- 3. Store, or compute again? ------------------------------------------------------------------
#
# What backward reads may also be computed again from something smaller: pointwise operators cost next to nothing,
# products do not. That makes a network of pipes, from what only forward has to what backward wants. A value is two
# points with a pipe as wide as its bytes between them; to store it is to cut the pipe. The cheapest plan is the
# minimum cut.

May = Callable[[fx.Node, fx.Node], bool]


def cheapest(cost: Callable[[fx.Node], float], may: May) -> set[fx.Node]:
    """What to store, so that backward can have all it wants.

    Args:
        cost: bytes that a stored value takes.
        may: whether a value may be computed again from one of its operands as backward has it.
    """
    pipes, stack, seen = nx.DiGraph(), list(wanted), set(wanted)
    while stack:
        node = stack.pop()
        pipes.add_edge((node, "in"), (node, "out"), capacity=cost(node))
        if node in wanted:
            pipes.add_edge((node, "out"), "backward")
        operands = [source for source in node.all_input_nodes if source not in inputs]
        if node.target is aten.mm.default or not all(may(node, source) for source in operands):
            pipes.add_edge("forward", (node, "in"))  # only forward has it
            continue
        for source in operands:
            pipes.add_edge((source, "out"), (node, "in"))
            if source not in seen:
                seen.add(source)
                stack.append(source)
    _, (have, _) = nx.minimum_cut(pipes, "forward", "backward")
    return {node for node in seen if (node, "in") in have and (node, "out") not in have}


exact = cheapest(nbytes, lambda node, operand: True)
print(f"the cheapest cut stores {len(exact)}: {mib(sum(map(nbytes, exact)))}, as torch.compile would")

# --- 4. What an error may reach ---------------------------------------------------------------------
#
# A sum or a product passes an error on as large as it came, and a smooth function not much larger. A comparison
# does not: near its threshold it falls the other way, by any error however small, and backward would go through a
# branch that forward did not take. So there is a table of operators that are known to pass errors on; an operator
# that is not in it wants its operands exactly. A gap in the table costs memory, never a wrong gradient.

KNOWN = {
    aten.mm.default, aten.t.default, aten.detach.default, aten.mul.Tensor, aten.mul.Scalar, aten.sub.Tensor,
    aten.pow.Tensor_Scalar, aten.gelu.default, aten.gelu_backward.default,
}  # fmt: skip


def bears_errors(node: fx.Node) -> bool:
    """Whether backward may have the value with an error: all that could read it there is in the table."""
    readers = [user for user in node.users if user in backward or user in wanted]
    return node.meta["val"].is_floating_point() and all(user.target in KNOWN for user in readers)


# --- 5. Codes -----------------------------------------------------------------------------------------
#
# Eight bits for each element, with a lowest value and a step for each row; one bit for each decision. Forward
# encodes what it stores and goes on with the exact value: its outputs keep every bit.

Parts = tuple[Tensor, ...]


def encode(x: Tensor) -> Parts:
    if x.dtype == torch.bool:
        bits = x.view(-1, 8).to(torch.uint8) << torch.arange(8, dtype=torch.uint8)
        return (bits.sum(1, dtype=torch.uint8),)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    unit = (high - low) / 255
    return ((x - low) / unit).round().to(torch.uint8), low, unit


def decode(parts: Parts, shape: torch.Size) -> Tensor:
    if len(parts) == 1:
        return (parts[0].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).bool().view(shape)
    code, low, unit = parts
    return code * unit + low


def coded(node: fx.Node) -> bool:
    return node.meta["val"].dtype == torch.bool or bears_errors(node)


def coded_bytes(node: fx.Node) -> float:
    like = node.meta["val"]  # a fake tensor: it has a shape and no elements
    return sum(part.nbytes for part in encode(torch.ones(like.shape, dtype=like.dtype))) if coded(node) else like.nbytes


# What is coded may not serve to compute again what has to be exact: the comparison is stored, since its operand is
# coded.
plan = cheapest(coded_bytes, lambda node, operand: not bears_errors(operand) or node.target in KNOWN)

print(f"in codes the cheapest cut stores {len(plan)}: {mib(sum(map(coded_bytes, plan)))}")
for node in nodes:
    if node in plan:
        what = "1 bit" if node.meta["val"].dtype == torch.bool else "8 bits" if coded(node) else "exact"
        print(f"    {node.name:8} {tuple(node.meta['val'].shape)!s:12} {what}")

# --- 6. Two halves ----------------------------------------------------------------------------------
#
# Forward is the joint graph up to the loss and what is stored. Backward is the joint graph as well, with what was
# stored given; what it does not need falls away, and what it needs and was not given is computed again.


def half(given: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.GraphModule:
    """The part of the joint graph that leads from some of its values to others."""
    graph, env = fx.Graph(), {}
    for node in given:
        env[node] = graph.placeholder(node.name)
    for node in nodes[:-1]:
        if node not in env and node.op != "placeholder" and all(source in env for source in node.all_input_nodes):
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[node] for node in results))
    graph.eliminate_dead_code()
    return fx.GraphModule(joint, graph)


arguments = [node for node in nodes if node.op == "placeholder" and node is not tangent]
saved = sorted(plan, key=nodes.index)
loss, *gradients = output.args[0]
forward_half = half(arguments, [loss, *saved])
backward_half = half([tangent, *arguments, *saved], gradients)


def train_step(lossless: bool) -> tuple[Tensor, Parts]:
    """The loss, and the gradients of the weights; nothing but the saved parts lives from one half to the other."""
    with torch.no_grad():
        found, *values = forward_half(BATCH, *WEIGHTS)
        packed = [encode(x) if coded(n) and not lossless else (x,) for n, x in zip(saved, values, strict=True)]
        shapes = [x.shape for x in values]
        del values
        opened = [
            decode(parts, shape) if coded(node) and not lossless else parts[0]
            for node, parts, shape in zip(saved, packed, shapes, strict=True)
        ]
        return found, backward_half(torch.tensor(1.0), BATCH, *WEIGHTS, *opened)


# --- 7. Is it right? --------------------------------------------------------------------------------
#
# Three things are asked of every rewrite, here and in the library's tests: forward keeps every bit; with codes that
# lose nothing, gradients keep every bit; with codes, gradients are near.

expected_loss, *expected = step(torch.tensor(1.0), BATCH, *WEIGHTS)
for lossless in (True, False):
    found_loss, found = train_step(lossless)
    assert torch.equal(found_loss, expected_loss)
    off = sum((a - b).square().sum() for a, b in zip(found, expected, strict=True))
    error = float((off / sum(b.square().sum() for b in expected)).sqrt())
    print(f"{'nothing is lost' if lossless else 'eight bits':16} the same loss, gradients {error:.2%} off")
    assert error == 0 if lossless else error < 0.01

# What is missing, and where it is in the library: sizes that change (sizes.py), classes and intervals instead of
# one table (passes/classify.py), levels that suit values and carry their decisions (codecs/), values that are both
# exact for one reader and coded for another (passes/plan.py), a proof that no decision is taken on a code
# (graph.py: verify), and a compiler that fuses all this into what is there anyway.
