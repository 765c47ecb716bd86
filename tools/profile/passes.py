"""How long our passes take on large graphs, against AOTAutograd's own tracing of the same model, as a markdown table.

Deep, narrow models: the number of nodes is what counts. Nothing is run; the graphs are traced on fake tensors. Seconds
are of one run on a machine that does other things as well; the shares are what compares.

Examples:

    python -m tools.profile passes
    python -m tools.profile passes --models gpt --nodes 1000,3000
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import fx, nn

from fxapprox import torch_adapter as adapter
from fxapprox.demo.model import preact_resnet
from fxapprox.options import Options
from fxapprox.passes.rewrite import rewrite
from tools.harness import head, select
from tools.zoo.models import GPT

OURS = ("classify", "plan", "encode")
HEAD = "model, depth|nodes|stored|AOTAutograd, s|classify, s|plan, s|encode, s|share|us a node"


@dataclass(frozen=True)
class Timed:
    """One model.

    Attributes:
        nodes: of the joint graph.
        tracing: seconds from the Dynamo graph to the joint graph.
        laps: seconds of each step of ours.
        values: how many are stored.
    """

    nodes: int
    tracing: float
    laps: dict[str, float]
    values: int


def resnet(blocks: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """A pre-activation bottleneck ResNet of 3 stages; 111 blocks in each make the ResNet-1001."""
    return preact_resnet(9 * blocks + 2, block="bottleneck"), (torch.zeros(16, 3, 32, 32),)


def gpt(layers: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """A GPT of width 64."""
    tokens = torch.zeros(2, 64, dtype=torch.int64)
    return GPT(layers, 64, 2, 64, 256), (tokens, tokens)


Build = Callable[[int], tuple[nn.Module, tuple[Any, ...]]]

# name: (builder, nodes of the joint graph for each unit of depth, units of the largest model that is named by it)
FAMILIES: dict[str, tuple[Build, int, int]] = {
    "ResNet-1001 family": (resnet, 600, 111),
    "GPT family": (gpt, 146, 96),
}


def timed(model: nn.Module, args: Sequence[Any], bits: int) -> Timed:
    """Traces and rewrites, without compiling."""
    found: list[Timed] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        start = time.perf_counter()

        def partition(joint: fx.GraphModule, joint_inputs: Sequence[Any], **given: Any) -> adapter.Partition:
            tracing = time.perf_counter() - start
            result = rewrite(joint, joint_inputs, options=Options(bits=bits, strict=True), **given)
            nodes = len(result.joint.gm.graph.nodes)
            found.append(Timed(nodes, tracing, result.seconds, len(result.plan.stored)))
            return result.forward, result.backward

        adapter.compile_eager(gm, inputs, adapter.JointPartitioner(partition, None), {})
        return adapter.stand_in_outputs(gm)

    torch.compiler.reset()
    torch.compile(model, backend=backend, dynamic=False)(*args)
    (result,) = found
    return result


def row(name: str, units: int, run: Timed) -> str:
    """One line of the table."""
    ours = sum(run.laps[lap] for lap in OURS)
    laps = " | ".join(f"{run.laps[lap]:.2f}" for lap in OURS)
    share, each = ours / run.tracing, ours / run.nodes * 1e6
    return f"| {name}, {units} | {run.nodes:,} | {run.values} | {run.tracing:.1f} | {laps} | {share:.1%} | {each:.0f} |"


def main(
    models: Annotated[str, typer.Option(help="comma-separated parts of names")] = "",
    nodes: Annotated[str, typer.Option(help="sizes of the joint graphs, about")] = "1000,3000,10000,30000",
    named: Annotated[bool, typer.Option(help="also the ResNet-1001 and the 96-layer GPT")] = True,
    bits: Annotated[int, typer.Option(help="8, 4 or 2")] = 4,
) -> None:
    """Prints the table."""
    sys.setrecursionlimit(100_000)  # Dynamo recurses over nested modules and long chains
    runs: list[tuple[str, Build, int]] = []
    for name in select(FAMILIES, models):
        build, each, largest = FAMILIES[name]
        depths = [max(1, int(count) // each) for count in nodes.split(",")] + [largest] * named
        runs += [(name, build, units) for units in sorted(set(depths))]
    # what torch imports and caches at its first compilation is nobody's
    for build, *_ in FAMILIES.values():
        timed(*build(1), bits)
    lines = [row(name, units, timed(*build(units), bits)) for name, build, units in track(runs, description="models")]
    print(head(*HEAD.split("|")))
    print("\n".join(lines))
