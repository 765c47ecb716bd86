"""Stored and peak bytes against sizes that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxapprox.measure.memory import peak_bytes, stored_bytes

BATCH, WIDE, NARROW = 32, 128, 16
HIDDEN_BYTES = BATCH * WIDE * 4
MIB = 2**20
COMPILED = ["aot_eager", pytest.param("inductor", marks=pytest.mark.inductor)]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, WIDE), nn.ReLU(), nn.Linear(WIDE, NARROW))


def alive_anyway(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    return [*model.parameters(), *model.buffers(), *inputs]


@pytest.mark.parametrize("backend", ["eager", *COMPILED])
def test_an_mlp_stores_its_hidden_layer(backend: str) -> None:
    model, x = mlp(), torch.randn(BATCH, 64)
    y = torch.compile(model, backend=backend)(x)
    assert stored_bytes(y, exclude=alive_anyway(model, x)) == HIDDEN_BYTES


def test_exclude_leaves_out_parameters_and_inputs() -> None:
    model, x = mlp(), torch.randn(BATCH, 64)
    second_weight = model[2].weight.numel() * 4
    assert stored_bytes(model(x)) == HIDDEN_BYTES + x.numel() * 4 + second_weight
    assert stored_bytes(model(x), exclude=[x]) == HIDDEN_BYTES + second_weight


def test_a_storage_counts_once_and_in_full() -> None:
    x = torch.randn(8, 8, requires_grad=True).exp()
    rows = x[:2] * x[2:4]
    assert stored_bytes([rows, {"sum": x.sin()}]) == 8 * 8 * 4


def test_unpacked_form_is_not_counted() -> None:
    x = torch.randn(BATCH, WIDE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.half(), 1), lambda packed: packed[0].float()):
        y = x.exp()
    assert stored_bytes(y) == HIDDEN_BYTES // 2


def test_a_function_may_keep_tensors_as_attributes() -> None:
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x.exp())
            ctx.more = [x.sin()]
            return x * 2

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad

    x = torch.randn(10, requires_grad=True)
    assert stored_bytes(Keeps.apply(x)) == 2 * 10 * 4


def test_nothing_is_stored_without_a_graph() -> None:
    with torch.no_grad():
        assert stored_bytes(mlp()(torch.randn(BATCH, 64))) == 0


def test_after_backward_is_an_error() -> None:
    y = mlp()(torch.randn(BATCH, 64)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="after they have already been freed"):
        stored_bytes(y)


def test_peak_counts_what_lives_at_once() -> None:
    before = torch.empty(4 * MIB, dtype=torch.uint8)

    def step() -> Tensor:
        kept = torch.empty(MIB, dtype=torch.uint8)
        for size in (2, 3, 1):
            temporary = torch.empty(size * MIB, dtype=torch.uint8)
            del temporary
        return kept

    measured = peak_bytes(step)
    assert (measured.peak, measured.kept) == (4 * MIB, MIB)
    assert measured.result.numel() == MIB
    del before


def test_peak_does_not_count_blocks_of_an_earlier_call() -> None:
    held = peak_bytes(lambda: torch.empty(MIB, dtype=torch.uint8)).result

    def step() -> None:
        nonlocal held
        held = torch.empty(2 * MIB, dtype=torch.uint8)

    measured = peak_bytes(step)
    assert (measured.peak, measured.kept) == (2 * MIB, 2 * MIB)


@pytest.mark.parametrize("backend", COMPILED)
def test_peak_of_a_compiled_training_step(backend: str) -> None:
    model, x = mlp(), torch.randn(BATCH, 64)
    compiled = torch.compile(model, backend=backend)

    def step() -> None:
        compiled(x).sum().backward()

    step()
    model.zero_grad(set_to_none=True)
    measured = peak_bytes(step)
    gradients = sum(p.numel() * 4 for p in model.parameters())
    assert HIDDEN_BYTES < measured.peak <= 3 * HIDDEN_BYTES + gradients
    assert measured.kept == gradients


def test_unknown_device() -> None:
    with pytest.raises(ValueError, match="'meta'"):
        peak_bytes(lambda: None, device="meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_on_cuda() -> None:
    def step() -> Tensor:
        kept = torch.empty(MIB, dtype=torch.uint8, device="cuda")
        torch.empty(2 * MIB, dtype=torch.uint8, device="cuda")
        return kept

    measured = peak_bytes(step, device="cuda")
    assert (measured.peak, measured.kept) == (3 * MIB, MIB)
