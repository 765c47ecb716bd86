"""Where people train: the examples with Hugging Face's Trainer, Accelerate and Lightning learn, and store less."""

from __future__ import annotations

import re

import pytest

from tests.processes import ROOT, python, torchrun

NAMES = ("trainer", "accelerate_loop", "lightning_module")


@pytest.mark.parametrize("name", NAMES)
def test_examples_learn_and_store_less(name: str) -> None:
    ended(python(str(ROOT / "examples" / f"{name}.py"), "--steps", "10", "--lowering", "eager"))


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.parametrize("name", NAMES)
def test_examples_with_inductor(name: str) -> None:
    ended(python(str(ROOT / "examples" / f"{name}.py"), timeout=900))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer", "accelerate_loop"])
def test_two_processes(name: str) -> None:
    """Both put DistributedDataParallel around what is compiled."""
    ended(torchrun(f"examples/{name}.py", "--steps", "10", "--lowering", "eager"))


def ended(output: str) -> None:
    """Fails unless the last line tells that the loss has fallen and that less was stored."""
    found = re.findall(r"loss (\S+) to (\S+), stored (\S+) of (\S+) bytes", output)
    assert found, output
    first, last, stored, plain = (float(number.replace(",", "")) for number in found[-1])
    assert last < 0.9 * first, output
    assert 3 * stored < plain, output
