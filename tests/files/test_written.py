"""Files are written as a whole or not at all, and whatever prevents it is an error of ours."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fxapprox
from fxapprox import FxApproxError, SavedPlan, Sensitivities
from fxapprox.files.written import make_folder, write_file, write_text
from fxapprox.show.pareto import plot
from tests.show.test_view import reported

WRITERS: dict[str, Callable[[object], object]] = {
    "plan": lambda path: SavedPlan(()).save(path),  # type: ignore[arg-type]
    "sensitivities": lambda path: Sensitivities(()).save(path),  # type: ignore[arg-type]
    "html": lambda path: reported("pooled", "codes").to_html(path),  # type: ignore[arg-type]
    "trace": lambda path: reported("pooled", "codes").to_trace(path),  # type: ignore[arg-type]
    "text": lambda path: write_text(path, "new"),  # type: ignore[arg-type]
    "picture": lambda path: plot((), 1, path),  # type: ignore[arg-type]
}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may become larger, as on a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("name", WRITERS)
def test_paths_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    bad = [tmp_path, tmp_path / "absent" / "file.png", "a\0b", tmp_path / ("n" * 300), loop / "file.png", 3, None, b"x"]
    for path in bad[: -3 if name in ("html", "trace") else None]:
        with pytest.raises(FxApproxError, match="cannot be written"):
            WRITERS[name](path)
    assert os.listdir(tmp_path) == ["loop"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    file = tmp_path / "kept.png"
    file.write_text("old")
    with largest_file(2), pytest.raises(FxApproxError, match=r"cannot be written: .*too large"):
        WRITERS[name](file)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.png"]
    if name != "picture":  # whose format is in the path
        with pytest.raises(FxApproxError, match=r"cannot be written: .*No space left"):
            WRITERS[name]("/dev/full")


def test_a_crash_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("old")

    def crash(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(file, crash)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept"]


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FxApproxError, match="cannot be made a folder"):
        make_folder(tmp_path / "file" / "folder")
    make_folder(tmp_path / "deep" / "folder")
    assert (tmp_path / "deep" / "folder").is_dir()


def test_the_plan_of_a_model_is_written_whole(tmp_path: Path) -> None:
    plan = fxapprox.SavedPlan(reported("pooled", "codes").plan.graphs)
    plan.save(tmp_path / "plan.json")
    assert SavedPlan.load(tmp_path / "plan.json") == plan
