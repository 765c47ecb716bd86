"""What the runs of a directory say: a table of final differences and one of gradients for each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from tools.convergence.arms import ARMS
from tools.convergence.records import Run
from tools.convergence.statistics import LEAST_ACCURACY, LEAST_LOSS, LEVEL, Difference, difference, drift, holm, margin
from tools.convergence.tasks import TASKS
from tools.harness import head, line

REFERENCE = "plain"
Pair = tuple[Run, Run]


@dataclass(frozen=True)
class Compared:
    """An arm beside the reference, seed by seed.

    Attributes:
        arm: its name.
        pairs: its runs, each with the reference's of the same seed.
        loss, accuracy: final differences; accuracy None where there is none.
        drift: how far the gap of the losses moves over the second half.
        equivalent, differs: p values of the loss, Holm's, over the arms of the same role.
    """

    arm: str
    pairs: list[Pair]
    loss: Difference
    accuracy: Difference | None
    drift: Difference
    equivalent: float = math.nan
    differs: float = math.nan

    @property
    def verdict(self) -> str:
        """In a few words."""
        role = ARMS[self.arm].role
        if any(not math.isfinite(run.loss) for run, _ in self.pairs):
            return "diverged" + (", as it must fail" if role == "control" else "")
        if math.isnan(self.equivalent):
            return "too few pairs"
        if role == "control":
            failed = self.differs <= LEVEL and self.loss.mean > 0 and self.equivalent > LEVEL
            return "fails, as it must" if failed else "NOT SHOWN TO FAIL"
        words = ["equivalent" if self.equivalent <= LEVEL else "not shown to be equivalent"]
        if self.differs <= LEVEL:
            words.append("worse" if self.loss.mean > 0 else "better")
        return ", ".join(words)


def groups(runs: Sequence[Run]) -> dict[tuple[str, int, str, str], list[Run]]:
    """Runs that may be paired: of one task, length, data and lowering; in the order of the table of tasks."""
    found: dict[tuple[str, int, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: list(TASKS).index(run.task)):
        found.setdefault((run.task, run.steps, run.data, run.lowering), []).append(run)
    return found


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each arm, in the order of the table of arms."""
    return {arm: found for arm in ARMS if (found := [run for run in runs if run.arm == arm])}


def references(runs: Sequence[Run]) -> dict[int, Run]:
    """The reference's run of each seed."""
    return {run.seed: run for run in runs if run.arm == REFERENCE}


def compared(runs: Sequence[Run]) -> list[Compared]:
    """All arms of a group beside the reference."""
    plain = references(runs)
    within = margin([run.loss for run in plain.values()], LEAST_LOSS)
    accuracies = [run.accuracy for run in plain.values() if run.accuracy is not None]
    found = []
    for arm, own in by_arm(runs).items():
        pairs = [(run, plain[run.seed]) for run in own if run.seed in plain]
        if arm == REFERENCE or not pairs:
            continue
        right = [a.accuracy - b.accuracy for a, b in pairs if a.accuracy is not None and b.accuracy is not None]
        found.append(Compared(
            arm, pairs, difference([a.loss - b.loss for a, b in pairs], within),
            difference(right, margin(accuracies, LEAST_ACCURACY)) if right else None,
            difference([drift([p.step for p in a.curve], gap(a, b)) for a, b in pairs]),
        ))  # fmt: skip
    return [one for role in dict.fromkeys(ARMS[c.arm].role for c in found) for one in _corrected(found, role)]


def _corrected(found: Sequence[Compared], role: str) -> list[Compared]:
    same = [one for one in found if ARMS[one.arm].role == role]
    equal = holm([one.loss.p_apart for one in same])
    other = holm([one.loss.p_zero for one in same])
    return [
        Compared(c.arm, c.pairs, c.loss, c.accuracy, c.drift, a, b) for c, a, b in zip(same, equal, other, strict=True)
    ]


def gap(run: Run, reference: Run) -> list[float]:
    """The difference of the losses held back, at each point."""
    return [a.loss - b.loss for a, b in zip(run.curve, reference.curve, strict=True)]


def table(runs: Sequence[Run]) -> str:
    """Markdown: a section for each group."""
    return "\n".join(section(group) for group in groups(runs).values())


def section(runs: Sequence[Run]) -> str:
    """Title, margins, and the two tables of a group."""
    one, plain = runs[0], [run for run in runs if run.arm == REFERENCE]
    title = f"## {TASKS[one.task].about}\n\n{one.steps} steps, {one.lowering} lowering, data {one.data}."
    if not plain:
        return f"{title} There are no runs of {ARMS[REFERENCE].about} to compare with.\n"
    losses = [run.loss for run in plain]
    deviation = f", deviation {stdev(losses):.4f} over {len(losses)} seeds" if len(losses) > 1 else ""
    within = margin(losses, LEAST_LOSS)
    title += f" {ARMS[REFERENCE].about}: loss {fmean(losses):.4f}{deviation}{_percent(plain)}. Margin: {within:.4f}."
    arms = compared(runs)
    columns = "arm|pairs|loss less reference's [95%]|p, apart|p, none|accuracy, points [95%]|drift [95%]|time|verdict"
    gradients = "arm|gradient error at 0, 25, 50, 100%|noise's share|bias"
    rows = [line(*cells(arm)) for arm in arms]
    measured = [line(*gradient_cells(arm)) for arm in arms if arm.pairs[0][0].error is not None]
    parts = [title, "", head(*columns.split("|"), notes=1), *rows, ""]
    if measured:
        parts += [head(*gradients.split("|")), *measured, ""]
    return "\n".join(parts)


def _percent(runs: Sequence[Run]) -> str:
    found = [run.accuracy for run in runs if run.accuracy is not None]
    return f", accuracy {100 * fmean(found):.2f}%" if found else ""


def cells(arm: Compared) -> list[str]:
    """The cells of an arm's differences; forward's bits are told by the first loss."""
    other = any(a.first != b.first for a, b in arm.pairs) and not ARMS[arm.arm].nudged and not ARMS[arm.arm].order
    return [
        ARMS[arm.arm].about + (" (first loss: other bits)" if other else ""),
        str(arm.loss.pairs),
        interval(arm.loss, "+.4f"),
        _p(arm.equivalent),
        _p(arm.differs),
        interval(arm.accuracy, "+.2f", 100) if arm.accuracy else "-",
        interval(arm.drift, "+.4f"),
        f"{fmean(a.seconds / b.seconds for a, b in arm.pairs if b.seconds):.2f}x",
        arm.verdict,
    ]


def gradient_cells(arm: Compared) -> list[str]:
    """The cells of an arm's gradients, means over seeds."""
    runs = [run for run, _ in arm.pairs]
    return [
        ARMS[arm.arm].about,
        *(_means(runs, of) for of in (lambda run: run.error, lambda run: run.noise, lambda run: run.bias)),
    ]


def _means(runs: Sequence[Run], of: Callable[[Run], list[float | None] | None]) -> str:
    columns = zip(*(found for run in runs if (found := of(run)) is not None), strict=True)
    known = ([value for value in column if value is not None] for column in columns)
    return ", ".join(f"{100 * fmean(column):.3g}%" if column else "-" for column in known)


def interval(found: Difference, form: str, unit: float = 1) -> str:
    """A mean with its interval."""
    numbers = [format(unit * number, form) for number in (found.mean, found.low, found.high)]
    return numbers[0] if math.isnan(found.low) else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"
