"""One row of the zoo's table: a setting, and what was measured there; and the file of rows, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

BITS = ("exact", "8", "4", "2", "auto")  # the exact plan first: the others may not store more
AVERAGE_BITS = 3  # of "auto"
PRECISIONS = ("fp32", "bf16")
BATCHES = ("static", "dynamic")
LOWERINGS = ("eager", "inductor")


@dataclass(frozen=True, order=True)
class Setting:
    """What is run.

    Attributes:
        model: a name in the zoo, or "module:builder".
        lowering: of the rewritten graphs, and of the baseline's.
        precision: "fp32", or "bf16" under autocast.
        batch: "static", or "dynamic": compiled at one batch, measured at another.
        bits: "exact", "8", "4", "2", or "auto" at an average of three.
    """

    model: str
    lowering: str
    precision: str
    batch: str
    bits: str


@dataclass(frozen=True)
class Row:
    """A setting and what was measured, ours beside the baseline.

    Attributes:
        failed: why there are no numbers, or "".
        blame: who failed, "fxapprox", "torch.compile" or the "model" itself; "" where nobody did.
        same_loss: whether the losses are bit for bit the same.
        loss_change: how far they are apart, relative to the baseline's; None where that is no number.
        same_buffers: whether the buffers after the step are (running statistics).
        gradient_error: relative, all parameters in one vector; None where the baseline's is zero or not finite.
        worst, worst_of: the error of the parameter that is the farthest off, and its name; of those whose gradient is
            not next to nothing beside the whole.
        strange: parameters whose gradient only one of the two has, or has as finite numbers.
        stored, exact_stored, baseline_stored: bytes that the autograd graph of what the model returns holds between
            forward and backward: with these bits, with the exact plan, with torch.compile's.
        peak, baseline_peak: bytes by which a step raises the memory in use, gradients included.
        seconds, baseline_seconds: median time of a step.
        warnings: those that the baseline does not give as well.
        graphs, breaks: what Dynamo made of the model.
        recompiled, baseline_recompiled: graphs that were compiled anew for the second batch.
        held: bytes that compiled graphs hold after the first step's forward; what runs between them is not counted.
        planned, baseline_planned: the same as the reports of these graphs have it; None where nothing was captured.
        fallbacks: why whole graphs are stored as torch.compile stores them.
        note: why nothing was captured or compressed, or "".
    """

    setting: Setting
    failed: str = ""
    blame: str = ""
    same_loss: bool = False
    loss_change: float | None = None
    same_buffers: bool = False
    gradient_error: float | None = None
    worst: float | None = None
    worst_of: str = ""
    strange: tuple[str, ...] = ()
    stored: int = 0
    exact_stored: int = 0
    baseline_stored: int = 0
    peak: int = 0
    baseline_peak: int = 0
    seconds: float = 0.0
    baseline_seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    graphs: int = 0
    breaks: int = 0
    recompiled: int = 0
    baseline_recompiled: int = 0
    held: int = 0
    planned: int | None = None
    baseline_planned: int | None = None
    fallbacks: tuple[str, ...] = ()
    note: str = ""

    def to_json(self) -> str:
        """The row in one line."""
        return json.dumps(asdict(self), allow_nan=False)


NAMES = {field.name for field in fields(Row)} - {"setting"}


def settings(
    models: Iterable[str],
    *,
    lowerings: Iterable[str] = LOWERINGS,
    precisions: Iterable[str] = PRECISIONS,
    batches: Iterable[str] = BATCHES,
    bits: Iterable[str] = BITS,
) -> list[Setting]:
    """All combinations, those of one model together, and of these those that share a baseline."""
    return [Setting(*choice) for choice in product(models, lowerings, precisions, batches, bits)]


def parse(line: str) -> Row:
    """A row from its line.

    Raises:
        ValueError: the line holds something else.
    """
    return row_of(json.loads(line))


def row_of(content: dict[str, Any]) -> Row:
    """A row from its JSON object.

    Raises:
        ValueError: it is something else.
    """
    try:
        setting = Setting(**content.pop("setting"))
        if content.keys() < NAMES:
            raise ValueError(f"a row of an older version, without {', '.join(sorted(NAMES - content.keys()))}")
        lists = {name: tuple(content[name]) for name in ("strange", "warnings", "fallbacks")}
        return Row(setting, **{**content, **lists})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a row with {', '.join(sorted(NAMES))}: {error!r}") from None


def load(path: Path) -> dict[Setting, Row]:
    """The rows of a file, the last of each setting; none if there is no file.

    Raises:
        ValueError: a line is not a row; the message names file and line. A last line without an end is left out: its
            writer was interrupted.
    """
    if not path.exists():
        return {}
    found: dict[Setting, Row] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                row = parse(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}; take the line out, or choose another file") from None
            found[row.setting] = row
    return found


def append(row: Row, path: Path) -> None:
    """Adds the row to the file."""
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + row.to_json() + "\n")
