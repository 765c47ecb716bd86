"""torch.utils.checkpoint in a model: its regions are computed again, exactly; only their random masks are stored."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import fxapprox

X = torch.randn(256, 64)


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module], dropout: float, context: Any) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(64, 64), nn.Linear(64, 64), norm(64)
        self.dropout, self.context = nn.Dropout(dropout), context

    def inside(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.second(F.relu(self.norm(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        if self.context is None:
            return self.inside(x)
        return checkpoint(self.inside, x, use_reentrant=False, **self.context)  # type: ignore[return-value]


def network(context: Any, norm: type[nn.Module] = nn.BatchNorm1d, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = (Block(norm, dropout, context) for _ in range(3))
    return nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 4))


def trained(model: nn.Module, **options: Any) -> tuple[Tensor, list[Tensor], fxapprox.Report]:
    """(loss, gradients and buffers, report) of one step."""
    torch.compiler.reset()
    torch.manual_seed(5)
    compiled = fxapprox.compile(model, strict=True, min_bytes=0, **{"lowering": "eager", **options})
    loss = compiled(X).square().mean()
    loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None] + list(model.buffers())
    (report,) = fxapprox.reports(compiled)
    return loss.detach(), found, report


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_gradients_are_those_of_exact_mode_without_checkpoints(
    norm: type[nn.Module], dropout: float, bits: int | None
) -> None:
    plain = trained(network(None, norm, dropout), bits=None)
    again = trained(network({}, norm, dropout), bits=bits)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


def test_only_the_inputs_of_regions_and_random_masks_are_stored() -> None:
    report = trained(network({}, dropout=0.3), bits=4)[2]
    stored = [d for d in report.decisions if d.bytes_after > 1000]
    inputs, masks = X.numel() * 4, X.numel() // 8
    assert [d.bytes_after for d in stored if d.storage == "exact"] == [inputs] * 3
    assert [d.bytes_after for d in stored if d.storage != "exact"] == [masks] * 3
    assert report.saved_bytes < trained(network(None, dropout=0.3), bits=None)[2].saved_bytes


def save_products(_: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    saved = operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


def test_a_selective_policy_is_honoured() -> None:
    context = {"context_fn": partial(create_selective_checkpoint_contexts, save_products)}
    plain = trained(network(None), bits=None)
    again = trained(network(context), bits=None)
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))
    saved = {d.value.split("_")[0] for d in again[2].decisions if d.bytes_after > 1000}
    assert saved <= {"addmm", "add", "mm"}


@pytest.mark.inductor
def test_dropout_in_a_region_repeats_under_inductor() -> None:
    plain = trained(network(None, dropout=0.3), bits=None, lowering="inductor")
    again = trained(network({}, dropout=0.3), bits=8, lowering="inductor")
    assert torch.equal(plain[0], again[0])
    for a, b in zip(plain[1], again[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
