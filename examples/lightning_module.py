"""PyTorch Lightning: a compiled LightningModule goes to the Trainer as it is.

Run it: python examples/lightning_module.py --bits 4
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxapprox


class Classifier(lightning.LightningModule):
    """Tells which quarter of an image is the brightest."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Losses(lightning.Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.found.append(outputs["loss"].item())


def images(count: int) -> TensorDataset:
    """Noise, with one quarter of each image brighter."""
    found, labels = torch.randn(count, 1, 16, 16), torch.randint(4, (count,))
    for image, label in zip(found, labels.tolist(), strict=True):
        image.view(2, 8, 2, 8)[label // 2, :, label % 2] += 1
    return TensorDataset(found, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lowering", default="inductor", choices=("inductor", "eager"))
    given = parser.parse_args()

    torch.manual_seed(0)
    compiled = fxapprox.compile(Classifier(), bits=given.bits, lowering=given.lowering)
    losses = Losses()
    trainer = lightning.Trainer(
        max_steps=given.steps, callbacks=[losses], logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(compiled, DataLoader(images(2048), batch_size=32, shuffle=True))

    reports = fxapprox.reports(compiled)
    stored, plain = (sum(getattr(r, name) for r in reports) for name in ("saved_bytes", "baseline_bytes"))
    print(f"loss {losses.found[0]:.3f} to {losses.found[-1]:.3f}, stored {stored:,} of {plain:,} bytes")


if __name__ == "__main__":
    main()
