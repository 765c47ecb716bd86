"""Shared by all tests: one Inductor cache for the run, one thread where bits matter, a clean Dynamo, golden files."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parent
GOLDEN = ROOT / "golden"
# What takes longest of all tests and repeats on whole models what others show of a part: `make long`. Cases of a test
# of which one more would show the same are marked where they stand.
LONG = (
    "bench", "docs", "tools", "torch_adapter", "training_loops", "whole", "memory/test_held.py",
    "passes/test_checkpoint.py", "test_huggingface.py",
)  # fmt: skip
STILL_SHORT = (
    "whole/test_never_more.py", "whole/test_one_value.py", "docs/test_readme.py", "tools/test_commands.py",
    "tools/convergence/test_statistics.py",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files in tests/golden anew")


if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores; torch reads it when it is imported


def pytest_configure(config: pytest.Config) -> None:
    cache = getattr(config, "cache", None)  # pytest -p no:cacheprovider has none
    if cache is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.mkdir("inductor")))


@pytest.hookimpl(tryfirst=True)  # before those that are not asked for are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(ROOT).as_posix()
        if place.startswith(LONG) and not place.startswith(STILL_SHORT):
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True, scope="session")
def _unmeasured_guards() -> Iterator[None]:
    """To time a graph's guards, for its log, Dynamo empties the processor's caches: 40 ms, a fifth of a small test."""
    from torch._dynamo import guards

    with patch.object(guards, "profile_guard_manager", lambda *_: 0.0):
        yield


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    import torch

    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def _settled() -> Iterator[None]:
    """What outlives a file's tests, a million objects of torch and sympy, is not searched for garbage again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of scattered gradients (embeddings) come out in one order only on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the file tests/golden/NAME; `pytest --update-golden` writes the file instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8"), f"{name} changed: if it should, pytest --update-golden"

    return check
