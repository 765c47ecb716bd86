"""One step of a small model, compiled by Inductor; prints a digest of loss and gradients."""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import nn

import fxapprox


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    x = torch.randn(64, 64)
    print("compiling", flush=True)
    loss = fxapprox.compile(net, bits=4, min_bytes=0)(x).square().mean()
    loss.backward()
    digest = hashlib.sha256(loss.detach().numpy().tobytes())
    for parameter in net.parameters():
        assert parameter.grad is not None
        digest.update(parameter.grad.numpy().tobytes())
    print("done", digest.hexdigest(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
