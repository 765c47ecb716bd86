"""README.md is executable: its Python blocks run, section by section; so do its `fxapprox ... --help` lines.

A `##` heading starts a fresh namespace. A Python block whose first line contains `# not run` is skipped.
"""

import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.documents import blocks, runnable

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
INSTALL = "pip install -c constraints.txt -e '.[test]'"
SHELLS = {"console", "bash", "sh", "shell"}


BLOCKS = list(blocks(README.read_text(encoding="utf-8"))) if README.is_file() else []
SECTIONS = list(dict.fromkeys(b.section for b in BLOCKS if runnable(b)))
SHELL_LINES = [line.strip().removeprefix("$ ") for b in BLOCKS if b.language in SHELLS for line in b.lines]
HELP_LINES = [line for line in SHELL_LINES if re.match(r"fxapprox\b.*\s--help\b", line)]


def test_there_is_a_readme_with_python_to_run() -> None:
    assert README.is_file(), f"{README} is missing"
    assert SECTIONS, "README.md has no ```python block that runs"


@pytest.mark.inductor
@pytest.mark.parametrize("section", SECTIONS)
def test_python_blocks(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # dataclasses, pickle and Dynamo look it up by name
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.section == section and runnable(block):
            source = "\n" * (block.line - 1) + "\n".join(block.lines)  # tracebacks show README's lines
            exec(compile(source, str(README), "exec"), module.__dict__)


def test_help_lines(tmp_path: Path) -> None:
    cli = [sys.executable, "-c", "import sys; from fxapprox.cli.app import main; sys.exit(main())"]
    for line in HELP_LINES:
        arguments = shlex.split(line, comments=True)[1:]
        done = subprocess.run([*cli, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_ci_runs_the_install_command_that_readme_gives() -> None:
    assert f"{INSTALL} && pytest" in SHELL_LINES
    assert INSTALL in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
