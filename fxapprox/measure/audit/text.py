"""An audit as text: the errors in all, of the worst parameters, and of the values that cause most of them."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxapprox.amounts import size_text
from fxapprox.ir.source import breaks_text
from fxapprox.measure.audit.advice import percent, recommend
from fxapprox.measure.audit.records import AuditData, BitsAudit
from fxapprox.measure.gradient_error import GradientError
from fxapprox.planning.bound import counted

WIDTH = 100


def audit_text(audit: AuditData, *, top: int = 5) -> str:
    """The audit as plain text."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, no_color=True).print(audit_tables(audit, top=top))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines()) + "\n"


def audit_tables(audit: AuditData, *, top: int = 5) -> Group:
    """Three tables, notes and the recommendation; ``top``: how many parameters and values to show."""
    parts: list[RenderableType] = [_title(f"gradients against exact mode, {_of(audit)}"), _totals(audit), ""]
    if top and any(setting.total.error is not None for setting in audit.settings):
        worst = max(audit.settings, key=lambda setting: setting.total.error or 0.0)
        parts += [_title(f"the parameters with the largest error in {worst.label}"), _parameters(audit, worst, top), ""]
    if top and any(setting.causes for setting in audit.settings):
        parts += [_title("the stored values that cause most of the error, each alone"), _causes(audit, top), ""]
    notes = [f"note: {note}" for note in audit.notes]
    for text in (*notes, breaks_text(audit.breaks)):
        parts += [Text(text), ""] if text else []
    return Group(*parts, Text(recommend(audit), style="bold"))


def _totals(audit: AuditData) -> Table:
    table = _table()
    for name in ("stored in", "error", "cosine", "noise", "bias", "added variance", "stored", "times less"):
        table.add_column(name, justify="left" if name == "stored in" else "right", no_wrap=True)
    table.add_row("plain torch.compile", *["-"] * 5, size_text(audit.baseline_bytes), "1.0x")
    table.add_row("exact", "0%", "1", *["-"] * 3, *_stored(audit, audit.exact_bytes))
    for setting in audit.settings:
        total = setting.total
        error, cosine, noise = _errors(total)
        noise += "" if total.noise_error is None else f" ±{100 * total.noise_error:.0f}"
        bias, added = ("-" if x is None else percent(x) for x in (total.bias, total.added_variance))
        table.add_row(setting.label, error, cosine, noise, bias, added, *_stored(audit, setting.saved_bytes))
    lines = ["error: ||g' - g|| / ||g||; noise: the share of its square that averages out over batches; bias: what"
             " stays; added variance: to that which gradients have from batch to batch"]  # fmt: skip
    worst = [(setting.label, setting.worst) for setting in audit.settings]
    named = [f"{label} {_errors(each.error)[0]} {each.name}" for label, each in worst if each is not None]
    lines += [f"worst parameter: {'; '.join(named)}"] if named else []
    if audit.floor is not None:
        lines.append(f"rounding of floats: exact mode is {percent(audit.floor)} from the model run as it is")
    table.caption = Text("\n".join(lines))
    return table


def _parameters(audit: AuditData, worst: BitsAudit, top: int) -> Table:
    """Those with the largest errors in this setting, but for gradients that are nothing but rounding."""
    known = counted([parameter.norm for parameter in worst.parameters])
    rounding = [i for i, parameter in enumerate(worst.parameters) if parameter.norm and i not in known]
    shown = (i for i in range(len(worst.parameters)) if i not in rounding)
    order = sorted(shown, key=lambda i: -(worst.parameters[i].error.error or 0.0))
    table = _table()
    table.add_column("parameter", overflow="fold")
    for setting in audit.settings:
        table.add_column(f"{setting.label}\nerror", justify="right", no_wrap=True)
        table.add_column("\ncosine", justify="right", no_wrap=True)
    for i in order[:top]:
        errors = (setting.parameters[i].error for setting in audit.settings)
        table.add_row(Text(worst.parameters[i].name), *(cell for error in errors for cell in _errors(error)[:2]))
    lines = [f"{len(order) - top} more err less"] if len(order) > top else []
    if rounding:
        such = worst.parameters[rounding[0]].name
        lines.append(f"left out: {len(rounding)} whose exact gradient is next to nothing, such as {such}")
    table.caption = Text("\n".join(lines)) if lines else None
    return table


def _causes(audit: AuditData, top: int) -> Table:
    """For each setting the values that cause most of its error."""
    table = _table()
    for name in ("stored in", "error", "share", "value", "module", "as"):
        number = name in ("error", "share")
        table.add_column(name, justify="right" if number else "left", no_wrap=name != "module", overflow="fold")
    for setting in audit.settings:
        for i, cause in enumerate(setting.causes[:top]):
            place = cause.module or cause.source.partition(" in ")[0]
            table.add_row(setting.label if i == 0 else "", percent(cause.error), f"{cause.share:.0%}",
                          *map(Text, (cause.value, place, cause.storage)))  # fmt: skip
        table.add_section()
    table.caption = "share: of the sum of all values' squared errors"
    return table


def _errors(error: GradientError) -> list[str]:
    cosine = "-" if error.cosine is None else f"{error.cosine:.4f}"
    return [
        "-" if error.error is None else percent(error.error),
        cosine,
        "-" if error.noise is None else f"{error.noise:.0%}",
    ]


def _stored(audit: AuditData, nbytes: int) -> list[str]:
    return [size_text(nbytes), f"{audit.baseline_bytes / nbytes:.1f}x" if nbytes else "-"]


def _of(audit: AuditData) -> str:
    if audit.parts:
        return f"one batch; noise and bias from {audit.parts} parts of it"
    return f"{audit.batches} batches" if audit.batches > 1 else "one batch"


def _table() -> Table:
    return Table(caption_justify="left")


def _title(text: str) -> Text:
    return Text(text, style="bold")
