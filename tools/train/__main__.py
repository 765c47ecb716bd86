"""Training runs beside each other: CIFAR-10 in several modes, automatic bits on generated data."""

from __future__ import annotations

from tools.harness import commands
from tools.train import auto, cifar

app = commands(__doc__, cifar, auto)

if __name__ == "__main__":
    app()
