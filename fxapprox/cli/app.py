"""The command line: ``fxapprox demo``, ``dump``, ``audit``, ``fit`` and ``bench``."""

from __future__ import annotations

import enum
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fxapprox.cli.parse import (
    parse_bits,
    parse_budget,
    parse_checkpoint,
    parse_checkpoint_bits,
    parse_several_bits,
    parse_size,
    parse_systems,
)
from fxapprox.errors import FxApproxError, OptionError

if TYPE_CHECKING:
    from fxapprox.report.result import Report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Train in a fraction of the activation memory, as a backend of torch.compile.",
)


class Format(str, enum.Enum):
    """Output formats of dump."""

    table = "table"
    json = "json"
    fx = "fx"
    dot = "dot"
    html = "html"
    trace = "trace"


class Stage(str, enum.Enum):
    """Stages of a graph that dump can show."""

    joint = "joint"
    plan = "plan"
    forward = "forward"
    backward = "backward"


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller network and fewer steps: one to three minutes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and batches.")] = 0,
) -> None:
    """Train a small ResNet on built-in images: plain torch.compile, exact mode, 8 and 4 bits, side by side.

    \b
    Examples:
        fxapprox demo
        fxapprox demo --quick --seed 1
    """
    from fxapprox.demo.run import run_demo

    run_demo(quick=quick, seed=seed, console=Console())


@app.command()
def dump(
    target: Annotated[str, typer.Argument(help="module:factory or file.py:factory", metavar="TARGET")],
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="table; json: docs/report-json.md; fx: the graphs as text; dot: as a drawing for Graphviz; html: a"
            " report for the browser; trace: memory for Perfetto (docs/html-report.md).",
        ),
    ] = Format.table,
    stage: Annotated[
        list[Stage] | None,
        typer.Option(
            "--stage",
            help="With fx and dot, repeatable: joint, as traced; plan, with what happens to each value; forward and"
            " backward, as they run. By default both halves as fx, the plan as dot.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="With fx: every node as torch prints it, also those that encode and decode.")
    ] = False,
    bits: Annotated[
        str,
        typer.Option(help="8, 4, 2, exact (lossless savings only), auto, or by module: layers.*.attn=8,*=4."),
    ] = "8",
    average_bits: Annotated[float, typer.Option(help="With --bits auto: bits an element, on the average.")] = 4.0,
    checkpoint: Annotated[
        str,
        typer.Option(
            help="Compute again in backward: sqrt (lowest peak), a share of that (0.5), or segments by number."
        ),
    ] = "",
    checkpoint_bits: Annotated[
        str, typer.Option(help="With --checkpoint: 8 or 4 bits for the values at the boundaries, or exact.")
    ] = "exact",
    memory_budget: Annotated[
        str, typer.Option(help="Choose bits and checkpoints for this peak: 0.3 of torch.compile's, or 2GiB.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="With --format html or trace: the file, instead of stdout.")] = None,
    pareto: Annotated[
        Path | None, typer.Option(help="Also try all that a budget chooses from, and draw what each costs.")
    ] = None,
    min_bytes: Annotated[int, typer.Option(help="Leave smaller tensors alone.")] = 4096,
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
        fxapprox dump train.py:make_model --format dot | dot -Tsvg > plan.svg

    A factory may build its model under torch.device("meta"): a model of any size can be looked at without its weights.
    """
    from fxapprox.frontend.explain import explain
    from fxapprox.frontend.target import load, nothing_stored, running
    from fxapprox.ir.source import breaks_text
    from fxapprox.options import Options
    from fxapprox.show.table import decisions_table

    if out is not None and format not in (Format.html, Format.trace):
        raise OptionError(f"--out goes with --format html or trace; for {format.value}, write > {out}")
    show_graphs = _graphs_as(format, stage, raw, all_rows)
    given: dict[str, Any] = {
        "bits": parse_bits(bits), "average_bits": average_bits, "min_bytes": min_bytes,
        "checkpoint": parse_checkpoint(checkpoint), "checkpoint_bits": parse_checkpoint_bits(checkpoint_bits),
        "memory_budget": parse_budget(memory_budget),
    }  # fmt: skip
    options = Options.parse(given)
    wanted = parse_size(size) if size else None
    with _users_code("tracing and planning"):
        loaded = load(target)
        options.check_patterns(loaded.model)
        with running(loaded):
            report = explain(loaded.step, *loaded.args, dynamic=dynamic, **given)
    if not report.baseline_bytes and not report.saved_bytes:
        raise nothing_stored(loaded, breaks_text(report.breaks))
    if wanted is not None:
        report = report.at(wanted)
    if format in (Format.html, Format.trace):
        text = report.to_html(out) if format is Format.html else report.to_trace(out)
        if out is None:
            sys.stdout.write(text + "\n")
    elif format is Format.json:
        sys.stdout.write(report.to_json() + "\n")
    elif show_graphs is not None:
        sys.stdout.write(show_graphs(report.graphs or (report,)))
    else:
        _console().print(decisions_table(report, everything=all_rows))
    if pareto is not None:
        _show_pareto(report, pareto, Console(stderr=True))


def _graphs_as(
    format: Format, stages: list[Stage] | None, raw: bool, all_rows: bool
) -> Callable[[Sequence[Report]], str] | None:
    """What writes the graphs in this format; None for formats without graphs.

    Raises:
        OptionError: an option belongs to another format.
    """
    if all_rows and format is not Format.table:
        raise OptionError(f"--all belongs to the table; --format {format.value} has every value anyway")
    if raw and format is not Format.fx:
        raise OptionError(f"--raw belongs to --format fx, not to {format.value}")
    if format not in (Format.fx, Format.dot):
        if stages:
            raise OptionError(f"--stage belongs to --format fx or dot; {format.value} shows the plan as a whole")
        return None
    from fxapprox.show.dot import check_installed, dot_text
    from fxapprox.show.fx import graphs_text, raw_text

    if format is Format.dot:
        check_installed()
    default = (Stage.plan,) if format is Format.dot else (Stage.forward, Stage.backward)
    names = [stage.value for stage in stages or default]
    write = dot_text if format is Format.dot else raw_text if raw else graphs_text
    return lambda reports: write(reports, names)


def _console() -> Console:
    """Standard output, in the terminal's width; where there is no terminal, that of COLUMNS or a default."""
    from fxapprox.show.summary import WIDTH

    return Console(width=shutil.get_terminal_size((WIDTH, 24)).columns)


@contextmanager
def _users_code(doing: str = "") -> Iterator[None]:
    """What the user's code prints goes to stderr: stdout is the report's. On a terminal, says what is being done."""
    showing = Console(stderr=True).status(doing) if doing else nullcontext()
    with showing, redirect_stdout(sys.stderr):
        yield


def _show_pareto(report: Report, path: Path, console: Console) -> None:
    from fxapprox.show.pareto import pareto_table, plot

    with console.status("trying all settings"):
        points, baseline = report.pareto(), report.baseline_peak_bytes
    plot(points, baseline, path)
    console.print(pareto_table(points, baseline))
    console.print(f"drawn in {path}", markup=False, emoji=False, highlight=False)


class AuditFormat(str, enum.Enum):
    """Output formats of audit."""

    table = "table"
    json = "json"


@app.command()
def audit(
    target: Annotated[str, typer.Argument(help="module:factory or file.py:factory", metavar="TARGET")],
    bits: Annotated[str, typer.Option(help="What to compare with exact: of 8, 4, 2, exact and auto.")] = "8,4,2",
    batches: Annotated[
        int, typer.Option(min=1, help="Parts of the batch that tell noise and bias apart; 1: do not.")
    ] = 4,
    top: Annotated[int, typer.Option(min=0, help="Parameters and stored values to show; 0: measure no values.")] = 5,
    format: Annotated[AuditFormat, typer.Option("--format", help="table, or json: every parameter and value.")] = (
        AuditFormat.table
    ),
    checkpoint: Annotated[str, typer.Option(help="As for dump: sqrt, or a number of segments.")] = "",
    checkpoint_bits: Annotated[str, typer.Option(help="As for dump: 8, 4 or exact.")] = "exact",
    rounding: Annotated[str, typer.Option(help="nearest, or stochastic.")] = "nearest",
    min_bytes: Annotated[int, typer.Option(help="Leave smaller tensors alone.")] = 4096,
    lowering: Annotated[str, typer.Option(help="eager, or inductor: as in training, but slow to compile.")] = "eager",
    seed: Annotated[int, typer.Option(help="Seed of the random numbers that the model draws.")] = 0,
) -> None:
    """Measure how far gradients are from exact ones in 8, 4 and 2 bits, what of it is noise, and where it comes from.

    TARGET's factory takes no arguments and returns (model, args) or (model, args, loss_fn). Some training steps are run
    on its batch; tensors in loss_fn's closure with as many rows as the batch are split with it.

    \b
    Examples:
        fxapprox audit train.py:make_model
        fxapprox audit train.py:make_model --bits 8,4,auto --top 10
        fxapprox audit train.py:make_model --batches 8 --rounding stochastic
        fxapprox audit train.py:make_model --format json > audit.json
    """
    from fxapprox.frontend.target import load, nothing_stored, running
    from fxapprox.ir.source import breaks_text
    from fxapprox.measure.audit.run import audit as measured
    from fxapprox.measure.audit.text import WIDTH, audit_tables

    numbers = parse_several_bits(bits)
    with _users_code():
        loaded = load(target)
    with _users_code(), running(loaded):
        found = measured(
            loaded.model,  # type: ignore[arg-type]  # a function is an error that audit words
            loaded.loss, loaded.args, numbers, batches=batches, causes=top > 0, compile_loss=True, seed=seed,
            checkpoint=parse_checkpoint(checkpoint), checkpoint_bits=parse_checkpoint_bits(checkpoint_bits),
            rounding=rounding, min_bytes=min_bytes, lowering=lowering,
        )  # fmt: skip
    if not found.baseline_bytes:
        raise nothing_stored(loaded, breaks_text(found.breaks))
    if format is AuditFormat.json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        console.print(audit_tables(found, top=top))


@app.command()
def bench(
    target: Annotated[str, typer.Argument(help="module:factory or file.py:factory", metavar="TARGET")],
    systems: Annotated[
        str, typer.Option(help="Comma-separated names or parts of them: eager, compile, fxapprox-4; all if empty.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each system, taken in turn.")] = 15,
    device: Annotated[str, typer.Option(help="cpu, or a CUDA device.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Also write bench.json, bench.md and bench.png into this directory.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and random numbers.")] = 0,
) -> None:
    """Measure memory, step time, compile time and gradient error of a training step, beside other ways to run it.

    TARGET's factory takes no arguments and returns (model, args) or (model, args, loss_fn). Every system runs in a
    process of its own and is compiled without a cache, which takes minutes; then all take turns, two steps each, and
    the second is timed.

    \b
    Examples:
        fxapprox bench train.py:make_model
        fxapprox bench train.py:make_model --systems compile,fxapprox-8,fxapprox-4 --rounds 31
        fxapprox bench mypackage.models:resnet --device cuda --out results
    """
    from fxapprox.bench import run, show
    from fxapprox.bench.systems import SYSTEMS
    from fxapprox.files.written import make_folder, write_text

    found = run.bench(target, parse_systems(systems, tuple(SYSTEMS)), rounds=rounds, device=device, seed=seed)
    _console().print(show.table(found))
    if out is not None:
        make_folder(out)
        write_text(out / "bench.json", found.to_json() + "\n")
        write_text(out / "bench.md", show.markdown(found))
        show.plot(found, out / "bench.png")


@app.command()
def fit(
    target: Annotated[str, typer.Argument(help="module:factory or file.py:factory", metavar="TARGET")],
    memory: Annotated[str, typer.Option(help="What a training step may take: 8GiB, 512MiB, 2GB.")],
    optimizer_bytes: Annotated[
        int, typer.Option(min=0, help="State for each element of a trained parameter: 4 for momentum, 8 for Adam.")
    ] = 0,
) -> None:
    """Show the largest batch that fits into an amount of memory, stored in several ways, without running a step.

    TARGET's factory takes no arguments and returns (model, args) or (model, args, loss_fn). The batch is the first
    dimension of the first argument, and of every argument and every target in the loss where it has the same size.

    \b
    Examples:
        fxapprox fit train.py:make_model --memory 8GiB
        fxapprox fit mypackage.models:resnet --memory 512MiB --optimizer-bytes 8
    """
    from fxapprox.amounts import parse_bytes
    from fxapprox.frontend.target import load, running
    from fxapprox.measure.fit.resize import largest_batches
    from fxapprox.measure.fit.table import batches_table

    limit = parse_bytes(memory, "--memory")
    with _users_code("tracing at several batches"):
        loaded = load(target)
        with running(loaded):
            rows = largest_batches(loaded, limit, optimizer_bytes)
    _console().print(batches_table(limit, rows))


@contextmanager
def _printing() -> Iterator[None]:
    """Flushes standard output at the end.

    Raises:
        FxApproxError: it takes no more.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        raise FxApproxError(f"standard output cannot be written to: {error}") from error


def main() -> None:
    """Entry point; an error of ours is one line, without a traceback."""
    try:
        with _printing():
            app()
    except FxApproxError as error:
        message = str(error).partition("\n\nSet TORCHDYNAMO_VERBOSE")[0]  # Dynamo's advice, not ours
        Console(stderr=True).print(
            f"fxapprox: {message}", style="red", markup=False, emoji=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)
