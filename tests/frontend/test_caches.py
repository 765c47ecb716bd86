"""Inductor's cache after a crash, damaged, on a full disk, or shared: a compile is right, or fails with an error.

What stands in a cache is torch's; that our graphs come out of it as they went in is ours to show.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, ROOT

pytestmark = [pytest.mark.inductor, pytest.mark.slow]
MOMENTS = (0.1, 0.4, 0.7, 0.9)  # of a compile's time, at which it is killed
SMALL = 2000  # bytes that a file may have on the disk that is full: less than one kernel takes


def started(folder: Path, limit: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "workers" / "one_step.py")], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": str(folder)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )  # fmt: skip


def result(process: subprocess.Popen[str]) -> str:
    """The digest of loss and gradients; fails if the process did."""
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    return output.split("done ")[1].strip()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float, Path]:
    """(digest, seconds that compiling takes, the cache that it leaves)."""
    folder = tmp_path_factory.mktemp("cache")
    process = started(folder)
    assert process.stdout is not None
    process.stdout.readline()
    begin = time.monotonic()
    return result(process), time.monotonic() - begin, folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_it_compiles(moment: float, good: tuple[str, float, Path], tmp_path: Path) -> None:
    digest, seconds, _ = good
    process = started(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "compiling\n"
    time.sleep(moment * seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert result(started(tmp_path)) == digest


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def garbled(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [halved, emptied, garbled])
@pytest.mark.parametrize("suffix", [".so", ".cpp", ".py", ""], ids=["libraries", "sources", "wrappers", "graphs"])
def test_damaged_files(
    damage: Callable[[Path], None], suffix: str, good: tuple[str, float, Path], tmp_path: Path
) -> None:
    """The same numbers, or an error; never others."""
    digest, _, cache = good
    folder = shutil.copytree(cache, tmp_path / "cache")
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix == suffix]
    assert files
    for file in files:
        damage(file)
    process = started(folder)
    output, errors = process.communicate(timeout=400)
    print("an error" if process.returncode else "the same numbers")
    assert process.returncode or output.split("done ")[1].strip() == digest
    assert not process.returncode or "Error" in errors or process.returncode < 0


def test_two_processes_share_a_cache(good: tuple[str, float, Path], tmp_path: Path) -> None:
    digest, _, _ = good
    both = [started(tmp_path), started(tmp_path)]
    assert [result(process) for process in both] == [digest, digest]


def test_a_full_disk_is_an_error_and_leaves_nothing_wrong(good: tuple[str, float, Path], tmp_path: Path) -> None:
    digest, _, _ = good
    process = started(tmp_path, SMALL)
    output, errors = process.communicate(timeout=400)
    assert process.returncode
    assert "done" not in output
    assert "Error" in errors
    assert result(started(tmp_path)) == digest
