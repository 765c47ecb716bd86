"""``fxapprox dump``: what would be stored, without running a step."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fxapprox.cli.given import takes
from fxapprox.cli.terminal import Target, console, users_code
from fxapprox.errors import OptionError
from fxapprox.options import Options
from fxapprox.options.parse import parse_size

if TYPE_CHECKING:
    from fxapprox.report.result import Report


class Format(str, enum.Enum):
    """Output formats of dump."""

    table = "table"
    json = "json"
    fx = "fx"
    dot = "dot"
    html = "html"
    trace = "trace"


@takes("bits", "average_bits", "checkpoint", "checkpoint_bits", "memory_budget", "slices", "min_bytes")
def dump(
    target: Target,
    *,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="table; json: docs/report-json.md; fx: the graphs as text; dot: as a drawing for Graphviz; html: a"
            " report for the browser; trace: memory for Perfetto (docs/html-report.md).",
        ),
    ] = Format.table,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            help="With fx and dot, repeatable: joint, as traced; plan, with what happens to each value; forward and"
            " backward, as they run; after:PASS, both as a pass leaves them. By default both halves as fx, the plan as"
            " dot.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="With fx: every node as torch prints it, also those that encode and decode.")
    ] = False,
    given: Mapping[str, Any],
    out: Annotated[Path | None, typer.Option(help="With --format html or trace: the file, instead of stdout.")] = None,
    pareto: Annotated[
        Path | None, typer.Option(help="Also try all that a budget chooses from, and draw what each costs.")
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all", help="In the table: a row for every value, identical layers not folded.")
    ] = False,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Plan with symbolic sizes.")] = False,
    size: Annotated[
        str, typer.Option(help="With --dynamic: bytes at this size, or at these by name: 64, or s77=64,s12=128.")
    ] = "",
) -> None:
    """Show what would be stored for backward, in how many bits and why, without running a step.

    TARGET's factory takes no arguments and returns (model, args) or (model, args, loss_fn); loss_fn takes
    what the model returns.

    \b
    Examples:
        fxapprox dump train.py:make_model
        fxapprox dump mypackage.models:resnet --bits 4 --all
        fxapprox dump train.py:make_model --bits "blocks.*.attention=8,*=4"
        fxapprox dump train.py:make_model --bits auto --average-bits 3.5
        fxapprox dump train.py:make_model --bits 4 --checkpoint sqrt
        fxapprox dump train.py:make_model --memory-budget 0.25
        fxapprox dump train.py:make_model --pareto costs.png
        fxapprox dump train.py:make_model --dynamic --size 64
        fxapprox dump train.py:make_model --format json > report.json
        fxapprox dump train.py:make_model --format html --out report.html
        fxapprox dump train.py:make_model --format trace --out memory.json
        fxapprox dump train.py:make_model --format fx --stage plan
        fxapprox dump train.py:make_model --format fx --stage backward --raw
        fxapprox dump train.py:make_model --format fx --stage after:encode
        fxapprox dump train.py:make_model --format dot | dot -Tsvg > plan.svg

    A factory may build its model under torch.device("meta"): a model of any size can be looked at without its weights.
    """
    if out is not None and format not in (Format.html, Format.trace):
        raise OptionError(f"--out goes with --format html or trace; for {format.value}, write > {out}")
    _require_of_format(format, stage, raw, all_rows)
    Options.parse(given)
    wanted = parse_size(size) if size else None
    report = _planned(target, given, dynamic, _passes_in(stage or ()))
    report = report if wanted is None else report.at(wanted)
    if format is Format.table:
        from fxapprox.show.table import decisions_table

        console().print(decisions_table(report, everything=all_rows))
    elif (text := _text(report, format, stage, raw, out)) is not None:
        sys.stdout.write(text)
    if pareto is not None:
        _show_pareto(report, pareto, Console(stderr=True))


def _require_of_format(format: Format, stages: Sequence[str] | None, raw: bool, all_rows: bool) -> None:
    """Checks that no option belongs to another format, and that what draws is there.

    Raises:
        OptionError: one does.
        FxApproxError: Graphviz's package is missing.
    """
    if all_rows and format is not Format.table:
        raise OptionError(f"--all belongs to the table; --format {format.value} has every value anyway")
    if raw and format is not Format.fx:
        raise OptionError(f"--raw belongs to --format fx, not to {format.value}")
    if stages and format not in (Format.fx, Format.dot):
        raise OptionError(f"--stage belongs to --format fx or dot; {format.value} shows the plan as a whole")
    if format is Format.dot:
        from fxapprox.show.dot import check_installed

        check_installed()


def _passes_in(stages: Sequence[str]) -> list[str]:
    """The passes that stages name.

    Raises:
        OptionError: a stage is neither one of those of a report nor "after:" and a pass.
    """
    from fxapprox.show.view import AFTER, STAGES

    for stage in stages:
        if stage not in STAGES and not stage.startswith(AFTER):
            raise OptionError(f"--stage {stage}: expected one of {', '.join(STAGES)}, or {AFTER}PASS")
    return [stage.removeprefix(AFTER) for stage in stages if stage.startswith(AFTER)]


def _planned(target: str, given: Mapping[str, Any], dynamic: bool, passes: Sequence[str]) -> Report:
    """The report on a target, of which no step is run; it has the graphs as these passes leave them.

    Raises:
        OptionError: a pass has no graphs to show, or has not run.
        TargetError: it cannot be loaded, or nothing of it is stored for a backward.
    """
    from fxapprox.frontend.explain import explain
    from fxapprox.frontend.target import load, nothing_stored, running
    from fxapprox.ir.source import breaks_text
    from fxapprox.passes.pipeline import keeping

    with keeping(*passes), users_code("tracing and planning"):
        loaded = load(target)
        Options.parse(given).check_patterns(loaded.model)
        with running(loaded):
            report = explain(loaded.step, *loaded.args, dynamic=dynamic, **given)  # type: ignore[arg-type]
    if not report.baseline_bytes and not report.saved_bytes:
        raise nothing_stored(loaded, breaks_text(report.breaks))
    for name in passes:
        if not any(name in graph.kept for graph in report.graphs or (report,)):
            raise OptionError(f"--stage after:{name}: with these options, this pass does not run")
    return report


def _text(report: Report, format: Format, stages: Sequence[str] | None, raw: bool, out: Path | None) -> str | None:
    """The report in this format; None where it has been written to a file."""
    from fxapprox.show.dot import dot_text
    from fxapprox.show.fx import graphs_text, raw_text

    if format in (Format.html, Format.trace):
        text = report.to_html(out) if format is Format.html else report.to_trace(out)
        return text + "\n" if out is None else None
    if format is Format.json:
        return report.to_json() + "\n"
    default = ("plan",) if format is Format.dot else ("forward", "backward")
    write = dot_text if format is Format.dot else raw_text if raw else graphs_text
    return write(report.graphs or (report,), stages or default)


def _show_pareto(report: Report, path: Path, console: Console) -> None:
    from fxapprox.show.pareto import pareto_table, plot

    with console.status("trying all settings"):
        points, baseline = report.pareto(), report.baseline_peak_bytes
    plot(points, baseline, path)
    console.print(pareto_table(points, baseline))
    console.print(f"drawn in {path}", markup=False, emoji=False, highlight=False)
