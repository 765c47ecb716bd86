"""The public names: loaded when they are first used, and the same for type checkers as for Python."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import fxapprox
from tests.processes import python


def test_type_checkers_see_what_python_sees() -> None:
    (block,) = (node for node in ast.parse(Path(fxapprox.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    packages = dict.fromkeys(fxapprox.PACKAGES, "fxapprox")
    assert {name: f"fxapprox.{module}" for name, module in fxapprox._HOMES.items()} | packages == seen
    assert sorted(seen.keys() - packages) == fxapprox.__all__


def test_every_name_is_there() -> None:
    assert all(getattr(fxapprox, name) is not None for name in fxapprox.__all__)
    assert set(fxapprox.__all__) <= set(dir(fxapprox))


def test_no_module_takes_the_place_of_a_name() -> None:
    assert {module.name for module in pkgutil.iter_modules(fxapprox.__path__)}.isdisjoint(fxapprox.__all__)
    assert importlib.import_module("fxapprox.measure.calibrate").calibrate is fxapprox.calibrate


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'explian'"):
        _ = fxapprox.explian


@pytest.mark.parametrize(
    "code", ["import fxapprox", "from fxapprox.cli.app import app; app(['--help'], standalone_mode=False)"]
)
def test_what_is_not_used_is_not_imported(code: str) -> None:
    found = python(
        "-c", f"{code}; import sys; print([name for name in sys.modules if name.partition('.')[0] == 'torch'])"
    )
    assert found.strip().splitlines()[-1] == "[]"
