"""Folds the decisions of identical layers into one row: "layers.3-11, 9 times"."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from fxapprox.ir.records import Decision


@dataclass(frozen=True, slots=True)
class Row:
    """Decisions that differ in nothing but one index in the path of their module, and in names that torch made up.

    Attributes:
        decisions: in the order of the report; a decision that is like no other is alone.
        module: path of the module, with all indices in place of the one that differs: "layers.3-11.mlp".
        bytes_before, bytes_after: of all of them together.
    """

    decisions: tuple[Decision, ...]
    module: str

    @property
    def first(self) -> Decision:
        """One of them, for what they have in common."""
        return self.decisions[0]

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.decisions)

    @property
    def bytes_before(self) -> int:
        return sum(decision.bytes_before for decision in self.decisions)

    @property
    def bytes_after(self) -> int:
        return sum(decision.bytes_after for decision in self.decisions)


def unfolded(decisions: Iterable[Decision]) -> tuple[Row, ...]:
    """A row for each decision, largest first."""
    return tuple(sorted((Row((decision,), decision.module) for decision in decisions), key=_largest_first))


def fold(decisions: Iterable[Decision]) -> tuple[Row, ...]:
    """The decisions in rows, largest first; every decision is in one row.

    Where a path has several indices, layers are told apart by the leftmost one that makes two rows equal: blocks of a
    stage are folded where the stages differ.
    """
    left = list(decisions)
    rows: list[Row] = []
    for position in range(max((len(_indices(d)) for d in left), default=0)):
        groups, left = _groups(left, position), []
        for alike in groups:
            if len({_indices(d)[position : position + 1] for d in alike}) > 1:
                rows.append(Row(tuple(alike), _folded_path(alike, position)))
            else:
                left += alike
    rows += (Row(tuple(alike), alike[0].module) for alike in _groups(left, None))
    return tuple(sorted(rows, key=_largest_first))


def _groups(decisions: Sequence[Decision], position: int | None) -> list[list[Decision]]:
    """Decisions that are alike but for the index at this position in their paths."""
    groups: dict[Hashable, list[Decision]] = {}
    for decision in decisions:
        groups.setdefault(_likeness(decision, position), []).append(decision)
    return list(groups.values())


def _likeness(decision: Decision, position: int | None) -> Hashable:
    """All that a row says of a decision."""
    d = decision
    said = tuple(map(_without_numbers, (d.value, d.storage, d.reason)))
    sizes = d.shape, d.sizes, d.dtype, d.bits, d.bytes_before, d.bytes_after
    return _masked(d, position), said, sizes, d.kind, d.reach, len(d.predicates), d.source


def _without_numbers(text: str) -> str:
    """The text without the numbers that tell torch's names and our segments apart."""
    return re.sub(r"_\d+\b|(?<=segment )\d+", "", text)


def _indices(decision: Decision) -> tuple[int, ...]:
    """The indices in the path of a module."""
    return tuple(int(part) for part in decision.module.split(".") if part.isdecimal())


def _masked(decision: Decision, position: int | None) -> tuple[str, ...]:
    parts = decision.module.split(".")
    numbered = [at for at, part in enumerate(parts) if part.isdecimal()]
    if position is not None and position < len(numbered):
        parts[numbered[position]] = "*"
    return tuple(parts)


def _folded_path(decisions: Sequence[Decision], position: int) -> str:
    indices = sorted({_indices(decision)[position] for decision in decisions})
    return ".".join(_ranges(indices) if part == "*" else part for part in _masked(decisions[0], position))


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: "0,3-11"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _largest_first(row: Row) -> tuple[int, int, int]:
    return -max(row.bytes_before, row.bytes_after), -row.bytes_before, -row.bytes_after
