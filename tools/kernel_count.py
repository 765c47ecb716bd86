"""How many different kernels a network has that gets deeper: what a layer needs is written, and compiled, once.

Counts the kernels that Inductor writes, forward's and backward's, for the CPU; nothing is compiled or run. A ResNet
with more blocks in each of its three stages, and a transformer with more layers.

Examples:

    python -m tools.kernel_count
    python -m tools.kernel_count --networks resnet --systems plain,4
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.progress import track
from torch import Tensor, nn

from fxapprox.cli.parse import parse_bits
from fxapprox.demo.model import preact_resnet
from tools.kernel_bytes import SYSTEMS, Attention, Residual
from tools.profile import absent_gpu
from tools.selection import select

DEPTHS = (2, 4, 6)


def resnet(depth: int) -> tuple[nn.Module, Tensor]:
    """As many blocks in each stage."""
    return preact_resnet(6 * depth + 2), torch.randn(8, 3, 32, 32)


def transformer(depth: int) -> tuple[nn.Module, Tensor]:
    """As many layers, each an attention and a perceptron."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            Residual(64, Attention(64, 4)),
            Residual(64, nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))),
        ]
    return nn.Sequential(*layers), torch.randn(4, 128, 64)


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {"resnet": resnet, "transformer": transformer}


def kernels(network: str, depth: int, system: str) -> tuple[int, int]:
    """Different kernels of forward and of backward, in a system of ``SYSTEMS``."""
    torch.manual_seed(0)
    model, x = NETWORKS[network](depth)

    def step(x: Tensor) -> Tensor:
        return model(x).square().mean()

    plain = system == "plain"
    halves = absent_gpu.written(step, x, plain=True) if plain else absent_gpu.written(step, x, bits=parse_bits(system))
    forward, backward = (half.source.count("async_compile.cpp_") for half in halves)
    return forward, backward


def main(
    networks: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "plain,8,4",
) -> None:
    """Prints a row for each network and system: forward's and backward's kernels at each depth."""
    print(f"| network | system | {' | '.join(f'{depth} layers' for depth in DEPTHS)} |")
    print("|---|---" + "|---:" * len(DEPTHS) + "|")
    for network in select(NETWORKS, networks):
        for system in select(SYSTEMS, systems):
            found = [kernels(network, depth, system) for depth in track(DEPTHS, f"{network}, {system}", transient=True)]
            print(f"| {network} | {system} | {' | '.join(f'{a} + {b}' for a, b in found)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
