"""What is wrong with a row, and how many rows are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tools.zoo.rows import Row

# relative, and more than rounding: what the bits explain. Exact mode recomputes what plain torch.compile stores, which
# Inductor may fuse, and so round, otherwise: in bfloat16 by up to half a percent of each value.
LIMITS = {"8": 0.05, "4": 0.35, "exact": 1e-6}
EXACT_IN_INDUCTOR = {"fp32": 1e-3, "bf16": 5e-2}


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
    if row.setting.lowering == "eager":
        same = {"loss": row.same_loss, "buffers": row.same_buffers}
        found += [f"other {name}" for name, holds in same.items() if not holds]
    if row.recompiled > row.baseline_recompiled:
        found.append(
            f"compiled anew for another batch: {row.recompiled} graphs, torch.compile {row.baseline_recompiled}"
        )
    return found


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
    ]
