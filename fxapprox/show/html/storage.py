"""The few groups into which ways to keep a value fall: each has a colour and a sign in the report."""

from __future__ import annotations

from collections.abc import Iterable

from fxapprox.ir.records import Decision
from fxapprox.ir.storage import Fate, Storage

# In the order of legends. The names are what filters show; report.css has a colour and a sign for each key.
GROUPS = {
    "bits2": "2 bits",
    "bits3": "3 bits",
    "bits4": "4 bits",
    "bits8": "8 bits",
    "lossy": "another code with loss",
    "lossless": "lossless code",
    "exact": "exact",
    "inside": "inside another code",
    "boundary": "checkpoint boundary",
    "recomputed": "recomputed",
    "dropped": "not needed",
    "free": "alive anyway",
    "none": "no storage decision",
}


_FATES = {
    Fate.CARRIED: "inside", Fate.RECOMPUTED: "recomputed", Fate.UNNEEDED: "dropped", Fate.FREE: "free",
    Fate.COPIED: "exact", Fate.NOT_COPIED: "dropped",
}  # fmt: skip


def storage_group(how: Storage | None) -> str:
    """The key in ``GROUPS`` of the way in which a value is kept; None: nothing is decided."""
    if how is None:
        return "none"
    if how.segment is not None or how.role:
        return "recomputed" if how.segment is not None else "boundary"
    if how.codec is None:
        return _FATES[how.fate]
    if how.lossless:
        return "exact" if how.is_exact else "lossless"
    return group if (group := f"bits{how.codec.bits}") in GROUPS else "lossy"


def totals(decisions: Iterable[Decision]) -> list[tuple[str, int, int, int]]:
    """(key of the group, how many values, bytes under plain torch.compile, bytes of this plan) of each that occurs."""
    found: dict[str, tuple[int, int, int]] = {}
    for decision in decisions:
        group = storage_group(decision.how)
        count, before, after = found.get(group, (0, 0, 0))
        found[group] = count + 1, before + decision.bytes_before, after + decision.bytes_after
    return [(group, *found[group]) for group in GROUPS if group in found]
