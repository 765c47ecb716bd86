"""Runs a graph exactly, with a probe in place of each code, and its backward again with some values from their codes.

Forward, and the gradients that the step gets, are exact. When backward is called, its inputs are there as they are and
in codes; it can run again with any of them in place of the exact ones, and what comes out is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import Like, Probe
from fxapprox.frontend.saved import note_saved
from fxapprox.ir.records import Activation, Plan, Stored
from fxapprox.ir.tensors import memory_order
from fxapprox.memory.between import Link
from fxapprox.options import Options
from fxapprox.passes.rewrite import Rewrite, rewrite

Tried = Callable[[Stored, Activation, Options], tuple[int, ...]]


@dataclass(frozen=True)
class Probed:
    """A graph with probes.

    Attributes:
        result: what became of it.
        plan: the plan that the probes were put into.
        probes: {value: (its probe, names of the probe's parts among backward's inputs)}.
    """

    result: Rewrite
    plan: Plan
    probes: Mapping[str, tuple[Probe, tuple[str, ...]]]


def compile_probed(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    link: Link,
    options: Options,
    tried: Tried,
    on_split: Callable[[Probed], None],
    on_backward: Callable[[Probed, Replay], None],
) -> Callable[..., Any]:
    """The graph, run operator by operator.

    Args:
        options: those to plan with; the lowering has to be "eager".
        tried: the numbers of bits that each entry of the plan is tried in; none leaves it as it is.
        on_split: called when the graph, if it is one of training, has been split.
        on_backward: called when backward has run, exactly.
    """
    made: list[Probed] = []  # its backward may be compiled after another graph's
    plans: list[Plan] = []

    def with_probes(plan: Plan, activations: Sequence[Activation]) -> Plan:
        plans[:] = [plan]
        values = {a.name: a for a in activations}
        stored = (_probe(entry, tried(entry, values[entry.name], options)) for entry in plan.stored)
        return replace(plan, stored=tuple(stored))

    def partition(joint: fx.GraphModule, joint_inputs: Sequence[Any], **given: Any) -> adapter.Partition:
        result = rewrite(joint, joint_inputs, options=options, handed=link.handed, revise=with_probes, **given)
        note_saved(link, result, joint)
        probes = {
            parts.entry.name: (parts.entry.codec, parts.inputs)
            for parts in result.parts if isinstance(parts.entry.codec, Probe)
        }  # fmt: skip
        made.append(Probed(result, plans[0] if plans else result.plan, probes))
        on_split(made[0])
        return result.forward, result.backward

    def watched(backward: fx.GraphModule) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            replay = Replay(backward, args)
            on_backward(made[0], replay)
            return replay.exact

        return run

    partitioner = adapter.JointPartitioner(partition, None)
    return link.watched(adapter.compile_eager(gm, inputs, partitioner, {}, backward=watched))


def _probe(entry: Stored, tried: tuple[int, ...]) -> Stored:
    if not tried:
        return entry
    return replace(entry, codec=Probe(inner=entry.codec, tried=tried, carries=bool(entry.carried)))


class Replay:
    """A backward graph that has run once, and can run again with inputs changed: only what depends on them does.

    Attributes:
        exact: what it returned.
        seconds: that it took.
    """

    def __init__(self, graph: fx.GraphModule, args: Sequence[Any]) -> None:
        self._graph = graph
        first, began = fx.Interpreter(graph, garbage_collect_values=False), time.perf_counter()
        self.exact = first.run(*args)
        self.seconds = time.perf_counter() - began
        self._values = dict(first.env)
        self._inputs = {node.name: node for node in graph.graph.find_nodes(op="placeholder")}

    def run(self, changed: Mapping[str, Tensor]) -> Sequence[Any]:
        """What the graph returns with other values for these inputs."""
        given = {self._inputs[name]: value for name, value in changed.items()}
        stale = {*given}
        for node in self._graph.graph.nodes:
            if node.op == "output" or any(source in stale for source in node.all_input_nodes):
                stale.add(node)
        kept = {node: old for node, old in self._values.items() if node not in stale}
        return fx.Interpreter(self._graph).run(initial_env={**kept, **given})

    def approximation(self, probe: Probe, parts: Sequence[str], bits: int) -> Tensor:
        """What the code in so many bits decodes to, of a probe with these inputs."""
        found = [self._values[self._inputs[part]] for part in parts]
        return probe.approximation(found, Like.of(found[0], memory_order(found[0])), bits)
