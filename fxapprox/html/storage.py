"""The few groups into which ways to store a value fall: each has a colour and a sign in the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxapprox.activation import Decision

# In the order of legends. The names are what filters show; report.css has a colour and a sign for each key.
GROUPS = {
    "bits2": "2 bits",
    "bits3": "3 bits",
    "bits4": "4 bits",
    "bits8": "8 bits",
    "lossless": "lossless code",
    "exact": "exact",
    "inside": "inside another code",
    "boundary": "checkpoint boundary",
    "recomputed": "recomputed",
    "dropped": "not needed",
    "free": "alive anyway",
    "none": "no storage decision",
}


def storage_group(text: str) -> str:
    """The key in ``GROUPS`` of a storage, given as reports print it ("4-bit threshold", "recomputed")."""
    starts = (
        ("boundary", "boundary"), ("for recomputation", "boundary"), ("recomputed", "recomputed"),
        ("in the code of", "inside"), ("inside", "inside"), ("not ", "dropped"), ("free", "free"), ("exact", "exact"),
        ("copied", "exact"), ("2-bit", "bits2"), ("3-bit", "bits3"), ("4-bit", "bits4"), ("8-bit", "bits8"),
    )  # fmt: skip
    if ", recomputed in segment" in text:
        return "recomputed"
    return next((group for start, group in starts if text.startswith(start)), "lossless" if text else "none")


def totals(decisions: Iterable[Decision]) -> list[tuple[str, int, int, int]]:
    """(key of the group, how many values, bytes under plain torch.compile, bytes of this plan) of each that occurs."""
    found: dict[str, tuple[int, int, int]] = {}
    for decision in decisions:
        group = storage_group(decision.storage)
        count, before, after = found.get(group, (0, 0, 0))
        found[group] = count + 1, before + decision.bytes_before, after + decision.bytes_after
    return [(group, *found[group]) for group in GROUPS if group in found]
