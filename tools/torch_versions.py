"""Runs the core tests on several releases of torch, each in an environment of its own.

An environment is made once in --dir (several GB each: releases bring CUDA) and used again. Every run writes
VERSION.json; all files in the directory together give the table.

Examples:

    python -m tools.torch_versions --dir runs/torch
    python -m tools.torch_versions --dir runs/torch --versions 2.11.0 --tests tests/passes
    python -m tools.torch_versions --dir runs/torch --table docs/results/torch_versions.md
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.harness import head, line, write_text

ROOT = Path(__file__).parents[1]
VERSIONS = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")  # the newest of each release that the adapter is for
CORE = (
    "tests/passes", "tests/ir", "tests/analysis", "tests/codecs", "tests/frontend/test_backend.py",
    "tests/frontend/test_explain.py", "tests/files/test_plan_file.py", "tests/test_options.py",
    "tests/whole/test_clamps.py", "tests/whole/test_gradients.py", "tests/whole/test_sizes.py",
    "tests/whole/test_user_checkpoints.py",
)  # fmt: skip
NEEDED = ("pytest", "pytest-xdist", "hypothesis", "transformers", "matplotlib", "pillow", "pydot")
HEAD = ("torch", "Python", "passed", "failed", "skipped", "run on", "failures")


@dataclass(frozen=True)
class Result:
    """What the tests said on one release.

    Attributes:
        torch: the version, with its build ("2.13.0+cpu").
        python: of the environment.
        day: when it was run, ISO.
        passed, failed, skipped: tests; errors count as failed.
        failures: names of those that failed.
    """

    torch: str
    python: str
    day: str
    passed: int
    failed: int
    skipped: int
    failures: tuple[str, ...] = ()


class StepFailed(RuntimeError):
    """A step that has to succeed has not; the message says which, and where its output is."""


def environment(version: str, folder: Path) -> Path:
    """The Python of an environment with this torch and what the tests need; made if it is not there."""
    home = folder / version
    python = home / "bin" / "python"
    if not python.exists():
        _do([sys.executable, "-m", "venv", str(home)], folder / f"{version}.log")
    constraint = folder / f"{version}.txt"
    constraint.write_text(f"torch=={version}\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(constraint), *NEEDED, "-e", str(ROOT)]
    _do(install, folder / f"{version}.log")
    return python


def test(version: str, python: Path, tests: tuple[str, ...], folder: Path) -> Result:
    """Runs the tests in an environment."""
    report, log = folder / f"{version}.xml", folder / f"{version}.log"
    report.unlink(missing_ok=True)
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit1",
        *tests,
    ]
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False, env=_cache(version, folder)
        )
    if not report.exists():
        raise StepFailed(f"the tests did not run: see {log}")
    build = subprocess.run(
        [str(python), "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return read_report(report, build)


def read_report(path: Path, build: str) -> Result:
    """The counts in pytest's JUnit file."""
    cases = list(ET.parse(path).getroot().iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    names = tuple(f"{case.get('file') or case.get('classname')}::{case.get('name')}" for case in failed)
    return Result(
        build,
        platform.python_version(),
        date.today().isoformat(),
        len(cases) - len(failed) - skipped,
        len(failed),
        skipped,
        names,
    )


def table(results: list[Result]) -> str:
    """A Markdown table, one row per release."""
    rows = [
        [r.torch, r.python, str(r.passed), str(r.failed), str(r.skipped), r.day, "<br>".join(r.failures)]
        for r in results
    ]
    return "\n".join([head(*HEAD, texts=len(HEAD)), *(line(*row) for row in rows), ""])


def saved(folder: Path) -> list[Result]:
    """All results in the directory, oldest release first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    results = [Result(**{**each, "failures": tuple(each["failures"])}) for each in found]
    return sorted(results, key=lambda result: [int(part) for part in result.torch.partition("+")[0].split(".")])


def _do(command: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise StepFailed(f"`{' '.join(command[:4])} ...` failed: see {log}")


def _cache(version: str, folder: Path) -> dict[str, str]:
    """The environment variables of a test run: kernels of one release are not offered to another."""
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / f"{version}-kernels"), "PYTHONPATH": ""}


def main(
    dir: Annotated[Path, typer.Option(help="directory of environments and results")],
    versions: Annotated[str, typer.Option(help="comma-separated releases")] = ",".join(VERSIONS),
    tests: Annotated[str, typer.Option(help="comma-separated paths; the core tests if empty")] = "",
    table_file: Annotated[Path | None, typer.Option("--table", help="write the table of all results there")] = None,
) -> None:
    """Makes what is missing, runs the tests on each release, prints the table."""
    console, folder = Console(), dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for version in filter(None, (part.strip() for part in versions.split(","))):
        with console.status(f"torch {version}"):
            try:
                result = test(
                    version, environment(version, folder), tuple(filter(None, tests.split(","))) or CORE, folder
                )
            except StepFailed as error:
                console.print(f"torch {version}: {error}", markup=False)
                continue
        write_text(folder / f"{version}.json", json.dumps(asdict(result), indent=1))
        console.print(f"torch {result.torch}: {result.passed} passed, {result.failed} failed, {result.skipped} skipped")
    text = table(saved(folder))
    console.print(text, markup=False)
    if table_file:
        write_text(table_file, text)


if __name__ == "__main__":
    typer.run(main)
