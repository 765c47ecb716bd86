"""The commands that documents, examples and the tools themselves quote are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITH_COMMANDS = ("errors", "profile", "train")
QUOTED = re.compile(r"python\s+-m\s+tools\.([a-z_.]+[a-z_])(?:\s+([a-z]+))?")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(file for folder in ("docs", "examples") for file in (ROOT / folder).rglob("*.md")),
    *(ROOT / "tools").rglob("*.py"),
]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_quoted_commands_are_there(file: Path) -> None:
    for name, command in QUOTED.findall(file.read_text(encoding="utf-8")):
        path = ROOT / "tools" / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"tools.{name}"
        if name in WITH_COMMANDS and command:
            assert (path / f"{command}.py").exists(), f"tools.{name} {command}"
