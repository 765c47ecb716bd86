"""The layout of the tree, read from its syntax: who may import what, and which file must have a test."""

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = "fxapprox.torch_adapter"
IMPORTERS_OF_PASSES = {"fxapprox.frontend.backend", "fxapprox.calibrate", "fxapprox.report.accounting"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "passes":
        parts = ("fxapprox", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(folder: str) -> list[Path]:
    link = ROOT / "fxapprox" / "passes"  # the same files as passes/, which is listed for itself
    return sorted(f for f in (ROOT / folder).rglob("*.py") if link not in f.parents)


# The library, by module name, and what is checked beside it for private imports.
LIBRARY = {module_name(f): f for folder in ("fxapprox", "passes") for f in python_files(folder)}
TOOLS = {module_name(f): f for f in python_files("tools")}


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The module that `from ... import` names, with leading dots resolved against the importing module."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def imported(file: Path, module: str) -> Iterator[str]:
    """Every dotted name an import statement anywhere in the file asks for: `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package=file.name == "__init__.py")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def private_torch(name: str) -> bool:
    head, *rest = name.split(".")
    return head == "functorch" or (head == "torch" and any(p.startswith("_") and p[1:2] != "_" for p in rest))


def private_uses(file: Path, module: str) -> list[str]:
    uses = [name for name in imported(file, module) if private_torch(name)]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if private_torch(name):
                uses.append(f"{name} (line {node.lineno})")
    return uses


def in_library(name: str) -> str | None:
    """The module of the library that an imported name lives in: itself, or the package it is a name of."""
    while name not in LIBRARY:
        name, _, rest = name.rpartition(".")
        if not rest:
            return None
    return name


IMPORTS = {
    module: {target for name in imported(file, module) if (target := in_library(name))}
    for module, file in LIBRARY.items()
}


def reaches_passes(module: str, seen: set[str]) -> bool:
    if is_pass(module):
        return True
    seen.add(module)
    return any(reaches_passes(m, seen) for m in IMPORTS[module] if m not in seen)


def is_pass(module: str) -> bool:
    return module == "fxapprox.passes" or module.startswith("fxapprox.passes.")


def test_every_folder_is_found() -> None:
    assert {"fxapprox.passes", "fxapprox.errors"} <= LIBRARY.keys()


@pytest.mark.parametrize("module", sorted(m for m in LIBRARY | TOOLS if not f"{m}.".startswith(f"{ADAPTER}.")))
def test_private_torch_is_used_by_the_adapter_only(module: str) -> None:
    assert private_uses((LIBRARY | TOOLS)[module], module) == []


@pytest.mark.parametrize("module", sorted(m for m in LIBRARY if not is_pass(m)))
def test_only_front_doors_import_passes(module: str) -> None:
    if module not in IMPORTERS_OF_PASSES:
        assert [m for m in IMPORTS[module] if is_pass(m)] == []


@pytest.mark.parametrize("module", sorted(m for m in LIBRARY if is_pass(m)))
def test_passes_import_leaf_modules_only(module: str) -> None:
    outside = [m for m in IMPORTS[module] if not is_pass(m)]
    assert [m for m in outside if reaches_passes(m, set())] == [], "these import passes themselves"


@pytest.mark.parametrize("name", sorted(f.stem for f in python_files("passes")))
def test_every_pass_has_a_test_file(name: str) -> None:
    if name not in {"__init__", "pipeline"}:
        expected = ROOT / "tests" / "passes" / f"test_{name}.py"
        assert expected.is_file(), f"passes/{name}.py has no {expected.relative_to(ROOT)}"


def test_passes_is_a_link() -> None:
    link = ROOT / "fxapprox" / "passes"
    assert link.is_symlink(), "git wrote the link as a file: check out with core.symlinks=true"
    assert link.readlink() == Path("../passes")


def test_the_bare_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delitem(sys.modules, "passes", raising=False)
    with pytest.raises(ImportError, match=r"fxapprox\.passes"):
        importlib.import_module("passes")
