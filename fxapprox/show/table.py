"""The decisions of a report as a table, for a terminal of any width."""

from __future__ import annotations

import io
import re

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fxapprox.amounts import size_text
from fxapprox.report.data import ReportData
from fxapprox.show.folding import Row, fold, unfolded
from fxapprox.show.summary import WIDTH, summary, unknown_text

LIMIT = 12  # rows shown unless all are asked for: with the totals they fill a screen of 40 lines
SHORT = {"float": "f", "bfloat": "bf", "uint": "u", "int": "i", "bool": "bool", "complex": "c"}


def decisions_table(report: ReportData, *, everything: bool = False) -> Group:
    """What is stored of each value, largest first, with the totals above.

    A row has two lines: the value and where it is made, and what it is and why it is treated so.

    Args:
        report: of one graph or several.
        everything: one row for each value; else identical layers are folded into one, and small rows left out.
    """
    rows = unfolded(report.decisions) if everything else fold(report.decisions)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for first, second in (("before", "each"), ("after", "each")):
        table.add_column(f"{first}\n{second}", justify="right", no_wrap=True)
    table.add_column("storage\nclass", overflow="fold", max_width=18)
    table.add_column("value\nshape", overflow="fold", max_width=32)
    table.add_column("module\nreason (source)", overflow="fold")
    shown = rows if everything else rows[:LIMIT]
    for row in shown:
        table.add_row(*_cells(row))
    return Group(Text(summary(report), style="bold"), Text(), table, *_notes(report, rows, len(shown)))


def _cells(row: Row) -> list[Text]:
    d = row.first
    many = row.count > 1
    kind = d.kind.value + (f", {d.reach.value}" if d.reach is not None and d.reach.value == "terminal" else "")
    source = f" ({d.source.partition(' ')[0]})" if d.source else ""
    return [
        _cell(_bytes(row.bytes_before), _bytes(d.bytes_before) if many else ""),
        _cell(_bytes(row.bytes_after), _bytes(d.bytes_after) if many else ""),
        _cell(d.storage, kind),
        _cell(d.value + (f" ×{row.count}" if many else ""), shape_text(d.dtype, d.shape)),
        _cell(row.module or "(top level)", _short(d.reason) + source),
    ]


def _cell(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _notes(report: ReportData, rows: tuple[Row, ...], shown: int) -> list[Text]:
    """What stands below the table."""
    hidden = rows[shown:]
    before, after = sum(row.bytes_before for row in hidden), sum(row.bytes_after for row in hidden)
    note = (
        f"{len(hidden)} smaller rows not shown: {size_text(before)} before, {size_text(after)} after;"
        f" --all shows every value ({len(report.decisions)})"
    )
    unknown = unknown_text(report)
    return [*([Text(note, style="dim")] if hidden else []), *([Text(unknown)] if unknown else [])]


def _bytes(count: int) -> str:
    return size_text(count) if count else "-"


def _short(reason: str) -> str:
    """The reason, with operators by the names that people know."""
    return re.sub(r"_scaled_dot_product_(\w*?attention)(_for_cpu)?", r"\1", reason.replace("aten.", ""))


def shape_text(dtype: str, shape: tuple[int, ...]) -> str:
    """A tensor's dtype and shape in short: "f32[8, 64]"."""
    name = dtype.rstrip("0123456789")
    return f"{SHORT.get(name, name)}{dtype[len(name) :]}[{', '.join(map(str, shape))}]"


def report_text(report: ReportData, *, width: int = WIDTH, everything: bool = False) -> str:
    """The report as plain text."""
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(decisions_table(report, everything=everything), markup=False)
    return out.getvalue()
