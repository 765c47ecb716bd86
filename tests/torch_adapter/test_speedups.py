"""Work that Inductor is spared, and instructions that it is given: nothing else changes."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.loop_body import LoopBody
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.utils import fresh_cache

import fxapprox
from fxapprox.torch_adapter import speedups
from fxapprox.torch_adapter.inductor import JointPartitioner
from fxapprox.torch_adapter.speedups.switch import PATCHES


def layers() -> tuple[nn.Module, Tensor]:
    """On images whose rows are no whole vectors."""
    torch.manual_seed(0)
    found = (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.GELU())
    return nn.Sequential(*found), torch.randn(8, 16, 7, 7)


@pytest.mark.inductor
def test_what_inductor_is_spared_leaves_no_trace(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same loss and gradients, bit for bit; loops are gone through less often, and fewer files compiled."""
    runs = 0
    body = LoopBody.__call__

    def counted(self: LoopBody, *indices: object) -> object:
        nonlocal runs
        runs += 1
        return body(self, *indices)

    monkeypatch.setattr(LoopBody, "__call__", counted)
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(speedups.SWITCH, switch)
        torch.compiler.reset()  # equal models and options share a graph
        model, x = layers()
        runs = 0
        with fresh_cache():
            loss = fxapprox.compile(model, bits=4, min_bytes=0, dynamic=False)(x).square().mean()
            loss.backward()
            files = libraries()
        found.append((loss.detach(), [p.grad for p in model.parameters()], (runs, files)))
    (loss, gradients, fewer), (expected, others, more) = found
    assert torch.equal(loss, expected)
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.equal(gradient, other)
    assert all(few < many for few, many in zip(fewer, more, strict=True))


def test_every_file_says_what_it_patches() -> None:
    names = {module.name for module in pkgutil.iter_modules(speedups.__path__)}
    assert {file.__name__.rpartition(".")[2] for file in PATCHES} == names - {"inlined", "switch"}
    for file in PATCHES:
        about = file.__doc__ or ""
        assert about.startswith("Patches ")
        assert "Saves: " in about
        assert "Torch: " in about


def test_what_is_compiled_without_is_kept_apart_in_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = JointPartitioner(None, "key").uuid()
    monkeypatch.setenv(speedups.SWITCH, "0")
    apart = JointPartitioner(None, "key")
    assert apart.uuid() != kept
    again, arguments = apart.__reduce__()
    assert again(*arguments).uuid() == apart.uuid()
    assert JointPartitioner(None, None).uuid() is None


def libraries() -> int:
    """How many files of kernels are in Inductor's cache."""
    return len(list(Path(cache_dir()).rglob("*.main.so")))
