"""A plan follows from the graph and the options alone: every process makes the same one.

Python's hashes of strings, and with them the order of its sets, differ from process to process, and so do addresses.
"""

from __future__ import annotations

from tests.processes import python


def test_every_process_makes_the_same_plans() -> None:
    found = {python("-m", "tests.workers.plans", PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert len(found) == 1, "\n".join(found)
