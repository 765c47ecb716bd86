"""A training loop of one's own with Hugging Face's Accelerate.

Run it: accelerate launch examples/accelerate_loop.py --bits 4
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxapprox


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


def running_sums(count: int, width: int) -> TensorDataset:
    """Inputs and targets: running sums, wrapped around."""
    x = torch.randn(count, width)
    return TensorDataset(x, x.cumsum(-1).sin())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lowering", default="inductor", choices=("inductor", "eager"))
    given = parser.parse_args()

    torch.manual_seed(0)
    model = Network(given.width)
    # in place: Accelerate wraps the model as it would without, and a state dict keeps its names
    model.compile(backend="fxapprox", options={"bits": given.bits, "lowering": given.lowering})

    accelerator = Accelerator(gradient_accumulation_steps=2)
    loader = DataLoader(running_sums(128 * given.steps, given.width), batch_size=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    losses = []
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())

    reports = fxapprox.reports(model)
    stored, plain = (sum(getattr(r, name) for r in reports) for name in ("saved_bytes", "baseline_bytes"))
    accelerator.print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}, stored {stored:,} of {plain:,} bytes")


if __name__ == "__main__":
    main()
