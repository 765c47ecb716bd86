"""Markdown documents whose fenced blocks are run: the blocks, by section."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Block:
    section: str
    language: str
    line: int  # of the first line of code, counted from 1
    lines: list[str] = field(default_factory=list)


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text; a heading inside a fence is code, not a heading."""
    section, fence, block = "(top)", "", None
    for number, line in enumerate(text.splitlines(), start=1):
        opening = re.match(r"(`{3,}|~{3,})\s*(\w*)", line)
        if block is None and opening:
            fence, block = opening[1], Block(section, opening[2].lower(), number + 1)
        elif block is None and line.startswith("## "):
            section = line.removeprefix("## ").strip()
        elif block is not None and line.rstrip() == fence:
            yield block
            block = None
        elif block is not None:
            block.lines.append(line)
    assert block is None, f"the fence opened before line {block.line} is never closed"


def runnable(block: Block) -> bool:
    return block.language == "python" and "# not run" not in "".join(block.lines[:1])
