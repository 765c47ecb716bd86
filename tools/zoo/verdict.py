"""What is wrong with a row, and how many rows are right."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from tools.zoo.rows import BITS, Row

# relative, and more than rounding: what the bits explain. Exact mode recomputes what plain torch.compile stores, which
# Inductor may fuse, and so round, otherwise: in bfloat16 by up to half a percent of each value.
LIMITS = {"exact": 1e-6, "8": 0.05, "4": 0.35, "2": 1.0, "auto": 0.6}
EXACT_IN_INDUCTOR = {"fp32": 1e-3, "bf16": 5e-2}

WORST = {"8": 0.10, "4": 0.60}  # the same of the single parameter that is the farthest off
FAR_OFF: dict[str, str] = {}  # {model: why one of its parameters may be farther off}
LEFT_ALONE: dict[str, str] = {}  # {model: why a whole graph of it is stored as torch.compile stores it}


def limit(row: Row) -> float:
    """The gradient error up to which a row is right."""
    rounding = EXACT_IN_INDUCTOR[row.setting.precision] if row.setting.lowering == "inductor" else 0.0
    return max(LIMITS[row.setting.bits], rounding)


def wrong(row: Row) -> list[str]:
    """What is wrong, in words. In Inductor a loss may be rounded otherwise, and is told apart."""
    if row.failed:
        return [] if row.blame in ("torch.compile", "model") else [f"failed ({row.blame})"]
    found = [f"gradient of {name}: only one has it, or it is finite in one only" for name in row.strange]
    if row.gradient_error is not None and row.gradient_error > limit(row):
        found.append(f"gradient error {row.gradient_error:.2%} > {limit(row):.2g}")
    found += [*far_off(row), *stored_too_much(row)]
    if row.setting.lowering == "eager":
        same = {"loss": row.same_loss, "buffers": row.same_buffers}
        found += [f"other {name}" for name, holds in same.items() if not holds]
    if row.recompiled > row.baseline_recompiled:
        found.append(
            f"compiled anew for another batch: {row.recompiled} graphs, torch.compile {row.baseline_recompiled}"
        )
    return found


def far_off(row: Row) -> list[str]:
    """Whether one parameter's gradient is farther off than its bits explain."""
    most = WORST.get(row.setting.bits)
    if most is None or row.worst is None or row.worst <= most or row.setting.model in FAR_OFF:
        return []
    return [f"gradient of {row.worst_of} off by {row.worst:.1%} > {most:.2g}"]


def stored_too_much(row: Row) -> list[str]:
    """Whether more is stored than with more bits, or than the report says, and whether a graph was left alone."""
    held, exact, plain = row.stored, row.exact_stored, row.baseline_stored
    found = [f"stores {held:,} bytes, the exact plan {exact:,}"] if held > exact else []
    found += [f"the exact plan stores {exact:,} bytes, torch.compile {plain:,}"] if exact > plain else []
    if row.planned is not None and row.planned != row.held:
        found.append(f"{row.planned:,} bytes reported, {row.held:,} held")
    left = [text for text in row.fallbacks if row.setting.model not in LEFT_ALONE]
    return found + [f"a whole graph is stored as by torch.compile: {text}" for text in left]


def summary(rows: Sequence[Row]) -> list[str]:
    """The counts, one in a line."""
    ran = [row for row in rows if not row.failed]

    def count(holds: Callable[[Row], bool], among: Sequence[Row]) -> str:
        number = sum(map(holds, among))
        return f"{number} of {len(among)}" + (f" ({number / len(among):.1%})" if among else "")

    models = len({row.setting.model for row in rows})
    return [
        f"{len(rows)} rows of {models} models; {len(ran)} ran, "
        f"{sum(row.blame in ('torch.compile', 'model') for row in rows)} failed in torch.compile itself",
        f"loss bit-identical to torch.compile: {count(lambda row: row.same_loss, ran)}",
        f"rows with something wrong: {count(lambda row: bool(wrong(row)), rows)}",
        f"rows in which less is stored: {count(lambda row: row.stored < row.baseline_stored, ran)}",
        f"rows in which more is stored than by the exact plan, or by torch.compile: {count(more, ran)}",
        f"rows in which what is reported is what is held: {count(lambda row: row.planned in (None, row.held), ran)}",
        f"rows with a whole graph left as it is: {count(lambda row: bool(row.fallbacks), ran)}",
        *(line for bits in BITS if (line := medians([row for row in ran if row.setting.bits == bits], bits))),
    ]


def more(row: Row) -> bool:
    """Whether it stores more than the exact plan, or that more than torch.compile."""
    return row.stored > row.exact_stored or row.exact_stored > row.baseline_stored


def medians(rows: Sequence[Row], bits: str) -> str:
    """How much less is stored, and how far gradients are off, in the middle of these rows; "" if there are none."""
    ratios = [row.baseline_stored / row.stored for row in rows if row.stored]
    errors = [row.gradient_error for row in rows if row.gradient_error is not None]
    worst = [row.worst for row in rows if row.worst is not None]
    if not (ratios and errors and worst):
        return ""
    middle, most = statistics.median(errors), statistics.median(worst)
    return f"{bits}: median {statistics.median(ratios):.2f}x less stored, gradient error {middle:.2%}, worst {most:.2%}"
