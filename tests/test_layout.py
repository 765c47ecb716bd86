"""The layout of the tree, read from its syntax: imports run down the layers and in no circle, lazy ones included."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = ROOT / "fxapprox" / "passes"  # the same files as passes/, which is listed for itself
# From below: what stands in one line may be imported by those behind it, and by itself. docs/design.md draws them.
LAYERS = (
    ("errors",), ("amounts", "bits", "sizes", "collector"), ("torch_adapter",), ("codecs",), ("ir",), ("files",),
    ("options",), ("policies",),
    ("analysis",), ("memory",), ("planning",), ("passes",), ("report.data",), ("show",), ("report",), ("frontend",),
    ("measure",), ("", "huggingface"), ("bench",), ("demo",), ("cli",),
)  # fmt: skip
MOST_AT_THE_TOP = 14
# The two tools that drive torch's insides: they trace without Dynamo, and have code written for an absent GPU.
INSIDE_TORCH = ("tools/fuzz/running.py", "tools/profile/absent_gpu.py")


def files_in(folder: str) -> list[Path]:
    return sorted(file for file in (ROOT / folder).rglob("*.py") if LINK not in file.parents)


def module_name(file: Path) -> str:
    """Its dotted name; below fxapprox without that."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("fxapprox", "__init__"))


LIBRARY = {module_name(file): file for folder in ("fxapprox", "passes") for file in files_in(folder)}


def imported(file: Path) -> Iterator[str]:
    """Every dotted name that an import statement anywhere in a file asks for: ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports of ours are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_library(name: str) -> str:
    """The module of ours that an imported name lives in: itself, or the package it is a name of."""
    parts = name.split(".")[1:]
    return next(found for at in range(len(parts), -1, -1) if (found := ".".join(parts[:at])) in LIBRARY)


IMPORTS = {
    module: {in_library(name) for name in imported(file) if name.split(".")[0] == "fxapprox"}
    for module, file in LIBRARY.items()
}


def place(module: str) -> tuple[int, str]:
    """The number of a module's layer, and the part of the layer that it belongs to."""
    inside = [(at, part) for at, parts in enumerate(LAYERS) for part in parts if f"{module}.".startswith(f"{part}.")]
    assert inside, f"{module} is in no layer"
    return max(inside, key=lambda found: len(found[1]))


def test_imports_run_down() -> None:
    pairs = [(module, target) for module, targets in IMPORTS.items() for target in targets]
    up = [f"{m} imports {t}" for m, t in pairs if place(m) != place(t) and place(m)[0] <= place(t)[0]]
    assert up == []


def test_imports_run_in_no_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()


def test_few_modules_lie_at_the_top() -> None:
    assert len(list((ROOT / "fxapprox").glob("*.py"))) <= MOST_AT_THE_TOP


@pytest.mark.parametrize("folder", ["fxapprox", "passes", "tools"])
def test_the_library_imports_no_tools_and_tools_import_no_tests(folder: str) -> None:
    above = {"tests"} if folder == "tools" else {"tests", "tools"}
    assert [f"{file}: {n}" for file in files_in(folder) for n in imported(file) if n.split(".")[0] in above] == []


def private_torch(name: str) -> bool:
    head, *rest = name.split(".")
    return head == "functorch" or (head == "torch" and any(p.startswith("_") and p[1:2] != "_" for p in rest))


def attributes(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_private_torch_is_used_by_the_adapter_only() -> None:
    checked = [file for folder in ("fxapprox", "passes", "tools") for file in files_in(folder)]
    allowed = [ROOT / path for path in ("fxapprox/torch_adapter", *INSIDE_TORCH)]
    outside = [file for file in checked if not any(path in (file, *file.parents) for path in allowed)]
    found = [
        f"{file}: {name}" for file in outside for name in (*imported(file), *attributes(file)) if private_torch(name)
    ]
    assert found == []


def test_every_pass_has_a_test_file() -> None:
    names = {file.stem for file in files_in("passes")} - {"__init__"}
    assert names <= {file.stem.removeprefix("test_") for file in files_in("tests/passes")}


def test_passes_is_a_link() -> None:
    assert LINK.is_symlink(), "git wrote the link as a file: check out with core.symlinks=true"
    assert LINK.readlink() == Path("../passes")


def test_the_bare_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delitem(sys.modules, "passes", raising=False)
    with pytest.raises(ImportError, match=r"fxapprox\.passes"):
        importlib.import_module("passes")
