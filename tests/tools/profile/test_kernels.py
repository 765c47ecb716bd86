"""What kernels read and write, of a small block: codes are made and read where values are, and decoded values stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tools.profile import absent_gpu, kernels
from tools.profile.absent_gpu import Code

ACTIVATION = 16 * 8 * 16 * 16 * 4  # bytes

needs_triton = pytest.mark.skipif(not absent_gpu.has_triton(), reason="needs the triton package")


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    again = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, *again, nn.Conv2d(8, 8, 3, padding=1, bias=False))


def block(device: str = "cpu", **options: object) -> list[Code]:
    model = net()
    return absent_gpu.written(lambda x: model(x).square().mean(), torch.randn(16, 8, 16, 16), device=device, **options)


def own(code: Code, what: str) -> int:
    return sum(getattr(kernel, what) for kernel in code.kernels if not kernel.external)


@pytest.mark.inductor
@pytest.mark.parametrize("bits", [8, 4])
def test_a_decoded_value_is_not_written_to_memory(bits: int) -> None:
    plain, ours = block(plain=True), block(bits=bits)
    _, backward = ours
    # what convolutions read: two activations and three gradients
    assert own(backward, "written") < 5.1 * ACTIVATION
    assert own(backward, "read") < own(plain[1], "read")


@pytest.mark.inductor
def test_a_code_is_made_where_its_value_is_and_packed_from_bytes() -> None:
    plain, ours = block(plain=True), block(bits=4)
    codes = 3  # both normalizations' inputs, and the output, which the loss squares
    assert own(ours[0], "written") - own(plain[0], "written") < 1.1 * codes * (ACTIVATION / 4 + ACTIVATION / 8)
    # the output has its codes' range read first, and is read by the loss
    assert own(ours[0], "read") - own(plain[0], "read") < 1.1 * codes * ACTIVATION / 4 + 2 * ACTIVATION


@needs_triton
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_triton_makes_machine_code_of_every_kernel(bits: int) -> None:
    for code in block("cuda", bits=bits):
        assert code.source.count("async_compile.triton(") == len(absent_gpu.machine_code(code)) > 0


@needs_triton
def test_on_gpus_codes_are_packed_where_they_are_made() -> None:
    forward, backward = block("cuda", bits=4)
    assert own(forward, "written") < 2.6 * ACTIVATION  # two activations, three codes
    assert own(backward, "written") < 5.1 * ACTIVATION


def test_wrong_options(tmp_path: Path) -> None:
    app = kernels.typer.Typer()
    app.command()(kernels.main)
    result = CliRunner().invoke(app, ["--machine-code"])
    assert result.exit_code == 2
    assert "add --device cuda" in " ".join(result.output.split())


@pytest.mark.inductor
def test_the_table_and_the_code(tmp_path: Path) -> None:
    app = kernels.typer.Typer()
    app.command()(kernels.main)
    result = CliRunner().invoke(app, ["--blocks", "mlp", "--systems", "4", "--kernels", "--code", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "| mlp | 4 |" in result.output
    assert "mlp, 4, backward" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp-4-backward.py", "mlp-4-forward.py"]


@pytest.mark.inductor
@pytest.mark.parametrize("network", kernels.NETWORKS)
def test_a_deeper_network_has_no_more_kernels(network: str) -> None:
    assert kernels.count(network, 3, "4") == kernels.count(network, 2, "4")
