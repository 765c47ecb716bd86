"""The pages of docs are executable: their blocks run in order in one folder, and what they print is what they show.

A Python block whose first line is ``# name.py`` is written to that file; any other runs, and a ``text`` block right
after it is what it prints. In a ``console`` block, each line after "$ " is a command, and what follows is what it
prints. "..." stands for anything; blank space at the end of a line does not count.
Where nothing is shown, nothing is compared.
"""

from __future__ import annotations

import doctest
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fxapprox.cli import app
from fxapprox.ir.operators import TAUGHT
from tests.documents import Block, blocks, runnable

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("codecs", "operators", "policies", "inspecting", "scale-out", "trainer", "accelerate", "lightning")
COLUMNS = 110  # of the terminal that the document shows


@pytest.fixture
def group() -> Iterator[None]:
    """What torchrun and init_process_group give: here a group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a page teaches holds for that page alone."""
    yield
    TAUGHT.clear()


@pytest.mark.parametrize("name", PAGES)
def test_page(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    page = ROOT / "docs" / f"{name}.md"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    if name == "scale-out":
        request.getfixturevalue("group")
    found = list(blocks(page.read_text(encoding="utf-8")))
    for block, after in pairwise([*found, Block("", "", 0)]):
        if (file := _file(block)) is not None:
            Path(file).write_text("\n".join(block.lines), encoding="utf-8")
            monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)  # another test's file may be called alike
        elif runnable(block):
            _run_python(block, page, module)
            _compare(capsys.readouterr().out, after.lines if after.language == "text" else [], page, block.line)
        elif block.language == "console":
            for line, command, shown in _commands(block):
                _compare(_run_command(command, monkeypatch, capsys), shown, page, line)
    for name in [name for name, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(tmp_path))]:
        del sys.modules[name]


def _file(block: Block) -> str | None:
    found = re.fullmatch(r"# (\w+\.py)", block.lines[0]) if block.language == "python" and block.lines else None
    return found[1] if found else None


def _run_python(block: Block, page: Path, module: types.ModuleType) -> None:
    torch._dynamo.reset()
    source = "\n" * (block.line - 1) + "\n".join(block.lines)  # tracebacks have the document's lines
    name = f"<{page.name}>"  # no file: Dynamo would read the source of a function there, and it is no Python
    exec(compile(source, name, "exec"), module.__dict__)


def _commands(block: Block) -> Iterator[tuple[int, str, list[str]]]:
    """(line of the document, command, the lines shown below it) of a block."""
    starts = [i for i, line in enumerate(block.lines) if line.startswith("$ ")]
    assert starts[:1] == [0], f"line {block.line}: a console block begins with '$ '"
    for start, end in pairwise([*starts, len(block.lines)]):
        yield block.line + start, block.lines[start].removeprefix("$ "), block.lines[start + 1 : end]


def _run_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What a command prints: ours in this process, others in a shell; None where a program is not installed."""
    name, *arguments = shlex.split(command)
    if name == "tlparse" and shutil.which(name) is None:
        return None
    if name != "fxapprox":
        return _run_shell(command)
    torch._dynamo.reset()
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    captured = capsys.readouterr()
    assert not stopped.value.code, captured.err
    return captured.out + captured.err


def _run_shell(command: str) -> str:
    ours = """fxapprox() { python -c 'from fxapprox.cli.app import main; main()' "$@"; }"""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", f"{ours}\n{command}"], env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def _compare(found: str | None, shown: list[str], page: Path, line: int) -> None:
    """Fails where a document shows something else than what is printed; nothing shown: nothing is compared."""
    wanted = "\n".join(text.rstrip() for text in shown).strip("\n")
    if found is None or not wanted:
        return
    clean = "\n".join(text.rstrip() for text in found.splitlines()).strip("\n")
    same = doctest.OutputChecker().check_output(wanted + "\n", clean + "\n", doctest.ELLIPSIS)
    assert same, f"{page.name}, line {line} prints:\n{clean}"


def test_from_scratch(capsys: pytest.CaptureFixture[str]) -> None:
    """It raises where a gradient is wrong, and prints what it says."""
    found = runpy.run_path(str(ROOT / "docs" / "fxapprox_from_scratch.py"))
    shown = inspect.cleandoc(found["__doc__"]).partition("It prints\n\n")[2]
    assert textwrap.dedent(shown).strip() == capsys.readouterr().out.strip()
