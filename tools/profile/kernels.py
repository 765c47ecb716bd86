"""What the kernels of three usual blocks read and write, in plain torch.compile and in fxapprox; nothing is run.

With --networks, how many different kernels a network has that gets deeper, forward's and backward's, on the CPU: what a
layer needs is written, and compiled, once.

Inductor counts: a kernel reads each of its operands once; libraries' kernels (convolutions, products) are told apart.
For "cuda" it writes Triton code for an H100 that need not be there, and --machine-code lets Triton's compiler have it;
that needs the triton package (pip install triton).

Examples:

    python -m tools.profile kernels
    python -m tools.profile kernels --device cuda --machine-code
    python -m tools.profile kernels --blocks conv --systems plain,4 --kernels
    python -m tools.profile kernels --blocks conv --systems 4 --code code
    python -m tools.profile kernels --networks resnet,transformer --systems plain,8,4
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.demo.model import preact_resnet
from fxapprox.options.parse import parse_bits
from tools import harness
from tools.harness import select, write_text
from tools.profile import absent_gpu
from tools.profile.absent_gpu import Code

MIB = 2**20
SYSTEMS = ("plain", "exact", "8", "4", "2")
DEPTHS = (2, 4, 6)
HALVES = ("forward", "backward")
HEAD = "block|system|stored|forward reads|writes|backward reads|writes|in libraries|kernels"


class Device(str, Enum):
    """What the code is for."""

    cpu = "cpu"
    cuda = "cuda"


class Residual(nn.Module):
    """x + f(norm(x))."""

    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class Attention(nn.Module):
    """Self-attention, its softmax written out: Inductor's kernels, not a library's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.project, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def conv() -> tuple[nn.Module, Tensor]:
    """Two of convolution, BatchNorm, ReLU; an activation is 16 MiB."""
    layers = (nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    again = (nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(*layers, *again), torch.randn(64, 64, 32, 32)


def mlp() -> tuple[nn.Module, Tensor]:
    """Two residual blocks with a GELU between two layers; an activation is 4 MiB, in the middle 16 MiB."""
    return nn.Sequential(*(Residual(256, _mlp()) for _ in range(2))), torch.randn(16, 256, 256)


def attention() -> tuple[nn.Module, Tensor]:
    """Two residual attentions of 4 heads; an activation is 4 MiB, the weights of one attention 16 MiB."""
    return nn.Sequential(*(Residual(256, Attention(256, 4)) for _ in range(2))), torch.randn(16, 256, 256)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))


BLOCKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"conv": conv, "mlp": mlp, "attention": attention}


def codes(block: str, system: str, device: str) -> tuple[int, list[Code]]:
    """Bytes stored, and the code of forward and backward, in a system of ``SYSTEMS``."""
    torch.manual_seed(0)
    module, x = BLOCKS[block]()

    def step(x: Tensor) -> Tensor:
        return F.mse_loss(module(x), torch.zeros_like(x))

    bits = None if system == "plain" else parse_bits(system)
    report = fxapprox.explain(step, x, bits=bits)
    stored = report.baseline_bytes if system == "plain" else report.saved_bytes
    if system == "plain":
        return stored, absent_gpu.written(step, x, device=device, plain=True)
    return stored, absent_gpu.written(step, x, device=device, bits=bits)


def line(block: str, system: str, stored: int, found: list[Code]) -> str:
    """A row of the table; MiB."""
    own = [[k for k in code.kernels if not k.external] for code in found]
    sizes = [sum(getattr(k, what) for k in half) for half in own for what in ("read", "written")]
    libraries = sum(k.read + k.written for code in found for k in code.kernels if k.external)
    cells = [block, system, *(f"{n / MIB:.1f}" for n in (stored, *sizes, libraries)), str(sum(map(len, own)))]
    return harness.line(*cells)


def details(code: Code) -> list[str]:
    """A line for each kernel that moves at least 1% of what all do."""
    total = sum(k.read + k.written for k in code.kernels)
    large = [k for k in code.kernels if 100 * (k.read + k.written) >= total]
    return [
        f"  {'library' if k.external else 'kernel '} reads {k.read / MIB:6.1f}, writes {k.written / MIB:6.1f}: {k.name}"
        for k in large
    ]


def _resnet(depth: int) -> tuple[nn.Module, Tensor]:
    """As many blocks in each stage."""
    return preact_resnet(6 * depth + 2), torch.randn(8, 3, 32, 32)


def _transformer(depth: int) -> tuple[nn.Module, Tensor]:
    """As many layers, each an attention and a perceptron."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            Residual(64, Attention(64, 4)),
            Residual(64, nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))),
        ]
    return nn.Sequential(*layers), torch.randn(4, 128, 64)


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {"resnet": _resnet, "transformer": _transformer}


def count(network: str, depth: int, system: str) -> tuple[int, int]:
    """Different kernels of forward and of backward, in a system of ``SYSTEMS``."""
    torch.manual_seed(0)
    model, x = NETWORKS[network](depth)

    def step(x: Tensor) -> Tensor:
        return model(x).square().mean()

    plain = system == "plain"
    halves = absent_gpu.written(step, x, plain=True) if plain else absent_gpu.written(step, x, bits=parse_bits(system))
    forward, backward = (half.source.count("async_compile.cpp_") for half in halves)
    return forward, backward


def count_table(networks: Sequence[str], systems: Sequence[str]) -> Iterator[str]:
    """A row for each network and system: forward's and backward's kernels at each depth."""
    yield harness.head("network", "system", *(f"{depth} layers" for depth in DEPTHS), texts=2)
    for network, system in product(networks, systems):
        found = [count(network, depth, system) for depth in track(DEPTHS, f"{network}, {system}", transient=True)]
        yield harness.line(network, system, *(f"{a} + {b}" for a, b in found))


def main(
    blocks: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    systems: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    networks: Annotated[str, typer.Option(help="count the kernels of these, of: resnet, transformer")] = "",
    device: Annotated[Device, typer.Option(help="what the code is for")] = Device.cpu,
    kernels: Annotated[bool, typer.Option("--kernels", help="list the large ones")] = False,
    machine_code: Annotated[
        bool, typer.Option("--machine-code", help="let Triton's compiler have all kernels")
    ] = False,
    code: Annotated[Path | None, typer.Option(help="a directory for the code")] = None,
) -> None:
    """Prints a table, of MiB or of kernels."""
    if networks:
        for text in count_table(select(NETWORKS, networks), select(SYSTEMS, systems)):
            print(text, flush=True)
        return
    if machine_code and device is not Device.cuda:
        raise typer.BadParameter("machine code is made of Triton's kernels: add --device cuda")
    if device is Device.cuda and not absent_gpu.has_triton():
        raise typer.BadParameter('--device cuda needs the triton package: run "pip install triton"')
    if code is not None:
        code.mkdir(parents=True, exist_ok=True)
    todo = [(block, system) for block in select(BLOCKS, blocks) for system in select(SYSTEMS, systems)]
    rows, more, compiled = [], [], 0
    for block, system in track(todo, "compiling", transient=True):
        stored, found = codes(block, system, device.value)
        rows.append(line(block, system, stored, found))
        for half, each in zip(HALVES, found, strict=True):
            more += [f"{block}, {system}, {half}", *details(each)] if kernels else []
            compiled += len(absent_gpu.machine_code(each)) if machine_code else 0
            if code is not None:
                write_text(code / f"{block}-{system}-{half}.py", each.source)
    typer.echo("\n".join([harness.head(*HEAD.split("|"), texts=2), *rows, *more]))
    if machine_code:
        typer.echo(f"Triton's compiler made machine code of all {compiled} kernels")
