"""The name of our backend in Accelerate."""

from __future__ import annotations

import copy

import pytest
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from fxapprox.huggingface import register_backend


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamoBackend, "_missing_", DynamoBackend._missing_)
    monkeypatch.setattr(DynamoBackend, "FXAPPROX", None, raising=False)


def test_accelerate_knows_no_backend_that_is_not_its_own() -> None:
    """If it did, register_backend would not be needed."""
    with pytest.raises(ValueError, match="'FXAPPROX' is not a valid DynamoBackend"):
        TorchDynamoPlugin(backend="fxapprox")  # type: ignore[arg-type]


def test_the_backend_is_one_of_accelerates() -> None:
    register_backend()
    register_backend()
    plugin = TorchDynamoPlugin(backend="fxapprox")  # type: ignore[arg-type]
    assert plugin.to_kwargs()["backend"] == "fxapprox"
    assert plugin.backend not in (DynamoBackend.NO, DynamoBackend.INDUCTOR)
    assert copy.deepcopy(plugin).backend == plugin.backend
    assert DynamoBackend("FXAPPROX") is DynamoBackend("FXAPPROX")
    with pytest.raises(ValueError, match="not a valid DynamoBackend"):
        DynamoBackend("FXAPPRO")
