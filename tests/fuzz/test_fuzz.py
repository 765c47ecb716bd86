"""Random programs under random options; ``python -m tools.fuzz`` runs as many as one likes."""

from __future__ import annotations

import pytest

from tests.fuzz.search import search


@pytest.mark.filterwarnings("ignore")  # of torch's, about the programs; ours are looked at in each example
def test_random_programs(one_thread: None) -> None:
    found = search(300, 0)
    assert not found.failures, "\n".join(f"{what}\n{call}" for what, call in found.failures)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_programs(seed: int, one_thread: None) -> None:
    found = search(20_000, seed)
    assert not found.failures, "\n".join(f"{what}\n{call}" for what, call in found.failures)
