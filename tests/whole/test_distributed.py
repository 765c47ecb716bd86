"""Several processes under torchrun: the checks are in tests/workers, the examples in examples/."""

from __future__ import annotations

import re

import pytest

from tests.processes import torchrun

WAYS = ("ddp", "fsdp2", "tensor_parallel")


@pytest.mark.parametrize("way", WAYS)
def test_processes_train_as_one_does(way: str) -> None:
    assert "passed: " in torchrun(f"tests/workers/{way}.py")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_processes_train_as_one_does_in_every_setting(way: str) -> None:
    assert "passed: " in torchrun(f"tests/workers/{way}.py", "--all", timeout=900)


@pytest.mark.parametrize("name", WAYS)
def test_examples_learn_and_store_less(name: str) -> None:
    output = torchrun(f"examples/{name}.py", "--steps", "8", "--lowering", "eager")
    ended(output)


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.parametrize("name", WAYS)
def test_examples_with_inductor(name: str) -> None:
    ended(torchrun(f"examples/{name}.py", timeout=900))


def ended(output: str) -> None:
    """Fails unless both processes tell that the loss has fallen and that less was stored."""
    lines = re.findall(r"rank \d: loss (\S+) to (\S+), stored (\S+) of (\S+) bytes", output)
    assert len(lines) == 2, output
    for first, last, stored, plain in lines:
        assert float(last) < 0.9 * float(first), output
        assert 3 * int(stored.replace(",", "")) < int(plain.replace(",", "")), output
    assert len({line[2:] for line in lines}) == 1, output
