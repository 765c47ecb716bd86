"""Data parallel: each process trains on batches of its own, and stores in 4 bits what its backward needs.

Run it: torchrun --standalone --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
    torch.manual_seed(0)
    model = DistributedDataParallel(Network(given.width).to(device))
    # compiled around DDP, the graph is split where DDP's buckets are, and gradients travel while backward goes on
    compiled = fxapprox.compile(model, bits=given.bits, lowering=given.lowering)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(dist.get_rank())  # the processes see different data

    losses = []
    for step in range(given.steps * ACCUMULATE):
        last = (step + 1) % ACCUMULATE == 0
        with nullcontext() if last else model.no_sync():
            x, y = batch(generator, 128, given.width, device)
            loss = nn.functional.mse_loss(compiled(x), y)
            (loss / ACCUMULATE).backward()
        losses.append(loss.detach())
        if last:
            optimizer.step()
            optimizer.zero_grad()

    reports = fxapprox.reports(compiled)
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
