"""docs/training.md names the test of every line; no test is named that there is not, and none is left out."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "training.md"


def test_every_line_has_its_test() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    sources = [path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py") if path.name != Path(__file__).name]
    assert named == set(re.findall(r"^def (test_\w+)", "\n".join(sources), flags=re.MULTILINE))
