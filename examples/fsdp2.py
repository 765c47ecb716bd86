"""Parameters, gradients and optimizer state in shards (FSDP2), activations in 4 bits.

Run it: torchrun --standalone --nproc-per-node 2 examples/fsdp2.py

FSDP2 gathers a block's parameters just before the block runs, in Python hooks that torch.compile does not trace. So
each block is compiled by itself; equal blocks share one compiled graph.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fxapprox

ACCUMULATE = 2  # batches for each step of the optimizer


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*(Block(width) for _ in range(4))), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def batch(generator: torch.Generator, size: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets: running sums, wrapped around."""
    x = torch.randn(size, width, generator=generator)
    return x.to(device), x.cumsum(-1).sin().to(device)


def train(given: argparse.Namespace, device: torch.device) -> None:
    """All that needs the processes' group ends here, before the group does."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    torch.manual_seed(0)
    model = Network(given.width).to(device)
    for block in model.blocks:
        block.compile(backend="fxapprox", options={"bits": given.bits, "lowering": given.lowering})
        fully_shard(block, mesh=mesh)
    sharded = fully_shard(model, mesh=mesh)  # the model itself
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(dist.get_rank())  # the processes see different data

    losses = []
    for step in range(given.steps * ACCUMULATE):
        last = (step + 1) % ACCUMULATE == 0
        sharded.set_requires_gradient_sync(last)  # gradients are reduced over processes once for each optimizer step
        x, y = batch(generator, 128, given.width, device)
        loss = nn.functional.mse_loss(model(x), y)
        (loss / ACCUMULATE).backward()
        losses.append(loss.detach())
        if last:
            optimizer.step()
            optimizer.zero_grad()

    reports = fxapprox.reports(model)
    stored, plain = (sum(getattr(r, name) for r in reports) for name in ("saved_bytes", "baseline_bytes"))
    print(f"rank {dist.get_rank()}: loss {losses[0]:.3f} to {losses[-1]:.3f}, stored {stored:,} of {plain:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lowering", default="inductor", choices=("inductor", "eager"))
    given = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    train(given, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
