"""Random programs, random options."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.choices import options, programs
from tests.fuzz.program import Program
from tests.fuzz.properties import check

LOOSE = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=300, derandomize=True, database=None, **LOOSE)
@given(program=programs(), chosen=options(), lossless=st.sampled_from(("identity", "exact")))
def test_random_programs(program: Program, chosen: dict[str, Any], lossless: str) -> None:
    check(program, lossless=lossless, **chosen)
