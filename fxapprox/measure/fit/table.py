"""The largest batch of each way to store, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from fxapprox.amounts import size_text
from fxapprox.errors import DoesNotFit
from fxapprox.measure.fit.largest import BatchFit


def batches_table(memory: int, rows: Mapping[str, BatchFit | DoesNotFit]) -> Table:
    """The largest batch for each way to store, against that of the first row."""
    title = f"largest batch whose training step fits into {size_text(memory)}"
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("stored")
    for name in ("batch", "times", "needs", "one more needs"):
        table.add_column(name, justify="right", no_wrap=True)
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if isinstance(row, DoesNotFit):
            table.add_row(name, "-", "-", "-", size_text(row.needed))
            continue
        times = "-" if isinstance(first, DoesNotFit) else f"{row.batch / first.batch:.2f}"
        table.add_row(name, str(row.batch), times, size_text(row.peak_bytes), size_text(row.next_peak_bytes))
    notes = {row.fixed_because for row in rows.values() if not isinstance(row, DoesNotFit) and row.fixed_because}
    table.caption = Text("\n".join(f"searched by tracing single batches: {note}" for note in sorted(notes)))
    return table
