"""What the tool reads from a test run, and what it says of runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tools import torch_versions
from tools.torch_versions import CORE, ROOT, Result, StepFailed

REPORT = """<testsuites><testsuite tests="4">
<testcase classname="tests.test_a" name="test_fine" file="tests/test_a.py"/>
<testcase classname="tests.test_a" name="test_wrong" file="tests/test_a.py"><failure message="1 != 2"/></testcase>
<testcase classname="tests.test_b" name="test_broken" file="tests/test_b.py"><error message="no fixture"/></testcase>
<testcase classname="tests.test_b" name="test_gpu" file="tests/test_b.py"><skipped/></testcase>
</testsuite></testsuites>"""


def test_core_tests_exist() -> None:
    assert [path for path in CORE if not (ROOT / path).exists()] == []


def test_counts_of_a_report(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    result = torch_versions.read_report(tmp_path / "report.xml", "2.11.0+cpu")
    assert (result.passed, result.failed, result.skipped) == (1, 2, 1)
    assert result.failures == ("tests/test_a.py::test_wrong", "tests/test_b.py::test_broken")


def test_table_of_saved_results(tmp_path: Path) -> None:
    for version in ("2.15.0+cu132", "2.9.1"):
        result = Result(version, "3.11.7", "2026-11-23", 3, 0, 1)
        (tmp_path / f"{version}.json").write_text(json.dumps(asdict(result)))
    lines = torch_versions.table(torch_versions.saved(tmp_path)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 2.9.1", "| 2.15.0+cu132"]


def test_tests_that_do_not_run_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="did not run"):
        torch_versions.test("2.13.0", Path("/bin/true"), (), tmp_path)
