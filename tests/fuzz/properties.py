"""What has to hold of every program under all options."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxapprox import Options
from fxapprox.activation import Spliced
from fxapprox.codecs import Like
from fxapprox.errors import OptionError
from fxapprox.graph import memory_order
from fxapprox.passes.encode import _context
from fxapprox.passes.pipeline import Rewrite, rewrite
from fxapprox.report import report_of
from tests.fuzz.choices import POLICIES
from tests.fuzz.nudge import Nudged
from tests.fuzz.program import BATCH, Program
from tests.fuzz.running import Step, Traced, Untraceable, Way, run, run_joint, serves, split

TORCH = Path(torch.__file__).parent
OTHER_BATCH = 9
FALLBACK = "fxapprox stores this graph exactly: "
AVERAGE = "average_bits="  # a warning: fewer than the classes need


def check(program: Program, *, lossless: str = "identity", report: bool = False, **options: Any) -> list[str]:
    """Traces a program once, and holds partitions of it against the joint graph, unsplit.

    Args:
        lossless: "identity" (every value goes through a codec that loses nothing), or "exact" (``bits=None``).
        report: whether the report is rendered as well.
        **options: that lose something; see ``choices.options``.

    Returns: what was noteworthy: graphs left alone, budgets that nothing fits.
    """
    exactly: dict[str, Any] = {"bits": None} if lossless == "exact" else {"policy": "identity"}
    if "checkpoint" in options and options.get("checkpoint_bits") is None:
        exactly["checkpoint"] = options["checkpoint"]
    ways = {"lossless": _way(exactly), "lossy": _way(options)}
    if any(given.dtype == "float64" for given in program.inputs):
        ways["nudged"] = _way({"policy": "nudged"})
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            traced = split(program, ways)
        except Untraceable as error:
            return [f"not traced: {str(error)[:60]}"]
        except OptionError as error:
            if "memory_budget" not in options:
                raise
            return [f"refused: {str(error)[:40]}"]
    for warning in warned:
        text = str(warning.message)
        if Path(warning.filename).is_relative_to(TORCH):
            continue  # what the program itself does
        assert text.startswith(FALLBACK) or AVERAGE in text, f"warns: {text}"
        notes.append(text)
    if traced.joint is None:
        return ["no gradient"]
    for batch in (BATCH, OTHER_BATCH):
        if batch == BATCH or serves(traced.joint, batch):
            _check_steps(program, traced, batch)
    if report:
        _check_text(traced.halves["lossy"])
    return [*notes, *(f"{parts.entry.codec.text} stored" for parts in traced.halves["lossy"].parts)]


def _way(options: dict[str, Any]) -> Way:
    given = {"min_bytes": 0, "lowering": "eager", **options}
    if "policy" in given:
        given["policy"] = POLICIES[given["policy"]]
    own = Options(**given)
    return lambda gm, inputs, **rest: rewrite(gm, inputs, options=own, **rest)


def _check_steps(program: Program, traced: Traced, batch: int) -> None:
    assert traced.joint is not None
    try:
        expected = run_joint(program, traced.joint, batch=batch)
    except RuntimeError:
        return  # torch itself cannot run it
    for name, halves in traced.halves.items():
        found = run(program, halves, batch=batch, record=name == "lossy")
        same(found.outputs, expected.outputs, f"{name}: output")
        same(found.inputs, expected.inputs, f"{name}: input, after forward,")
        if name == "lossless":
            same(found.gradients, expected.gradients, "lossless: gradient")
        else:
            finite_as(found.gradients, expected.gradients, name)
        if name == "nudged" and (moved := moves(found, expected)) > 1e-5:
            again = split(program, {"hardly": _way({"policy": "hardly nudged"})}).halves["hardly"]
            less = moves(run(program, again, batch=batch), expected)
            assert less < moved / 10, f"nudged: gradients move by {moved}, nudged a 1000th of that by {less}"
        if name == "lossy":
            if not program.dynamic:  # codecs' groups depend on which sizes are symbolic
                within_bounds(halves, found)
            stored_as_planned(halves, found, batch)


def same(found: list[Any], expected: list[Any], what: str) -> None:
    """Every bit is the same, those of NaN included."""
    assert len(found) == len(expected), f"{what}: {len(found)} instead of {len(expected)}"
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(other, Tensor):
            assert one == other, f"{what} {i}: {one!r} instead of {other!r}"
            continue
        about = (one.dtype, one.shape), (other.dtype, other.shape)
        assert about[0] == about[1], f"{what} {i}: {about[0]} instead of {about[1]}"
        assert torch.equal(_bits(one), _bits(other)), f"{what} {i} differs: {one} instead of {other}"


def _bits(value: Tensor) -> Tensor:
    """The value as integers; all NaN are one."""
    if not value.dtype.is_floating_point:
        return value
    plain = torch.where(value.isnan(), torch.nan, value).contiguous()
    return plain.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()])


def finite_as(found: list[Any], expected: list[Any], name: str) -> None:
    """No NaN and no infinity where the exact gradient has none."""
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if isinstance(other, Tensor) and bool(other.isfinite().all()):
            assert bool(one.isfinite().all()), f"{name}: gradient {i} is {one}, exactly it is {other}"


def moves(found: Step, expected: Step) -> float:
    """How far gradients are from the exact ones, as a share of the largest; 0 if those are not finite.

    Values moved by next to nothing move them by next to nothing, or in proportion at least, unless something was
    decided on a value.
    """
    exact = expected.gradient
    if not exact.numel() or not bool(exact.isfinite().all()):
        return 0.0
    return float((found.gradient - exact).abs().max()) / (float(exact.abs().max()) + 1e-6)


def within_bounds(halves: Rewrite, step: Step) -> None:
    """Every decoded value is as close to the value as its codec says, and every decision the one that was taken."""
    nodes = {node.name: node for node in halves.forward.graph.nodes}
    for parts in halves.parts:
        entry, spliced = parts.entry, parts.spliced
        again = {name for segment in halves.segments for name in segment.recomputed}
        if again.intersection(node.name for node in parts.nodes):
            continue  # encoded again in backward, maybe from an approximate value
        if spliced is None or any(name not in nodes for name in (entry.name, *entry.predicates, *entry.carried)):
            continue
        context = _context(entry, nodes)
        if any(node.name not in step.forward for node in context.nodes):
            continue
        x = step.forward[entry.name]
        like = Like.of(x, memory_order(x))
        code = context.encode(entry.codec, x, [step.forward[node.name] for node in context.nodes])
        found = _decoded(spliced, step, x)
        if found is not None and not isinstance(entry.codec, Nudged):
            off, bound = (found.double() - x.double()).abs(), entry.codec.bound(code, like).double()
            fine = (off <= bound) | ~x.isfinite() | ~bound.isfinite() | (found == x)
            assert bool(fine.all()), (
                f"{entry.name}: {entry.codec.text} says within {bound.expand(x.shape)[~fine][:3]},"
                f" but makes {found[~fine][:3]} of {x[~fine][:3]}"
            )
        for name in entry.predicates:
            taken = [step.backward[n] for n in spliced.decode if n in step.backward]
            taken = [t for t in taken if isinstance(t, Tensor) and t.dtype == torch.bool and t.shape == x.shape]
            assert not taken or any(torch.equal(t, step.forward[name]) for t in taken), f"{name}: decided otherwise"


def _decoded(spliced: Spliced, step: Step, x: Tensor) -> Tensor | None:
    """What backward makes of a code: the last value of the original's shape and type."""
    names = set(spliced.decode)
    made = [value for name, value in step.backward.items() if name in names and isinstance(value, Tensor)]
    return next((value for value in reversed(made) if (value.shape, value.dtype) == (x.shape, x.dtype)), None)


def stored_as_planned(halves: Rewrite, step: Step, batch: int) -> None:
    """The report's bytes are those that forward leaves."""
    if halves.fallback:
        return
    report = report_of(halves, lowering="eager")
    if report.sizes and batch != BATCH:
        report = report.at({symbol.name: batch for symbol in report.sizes})
    assert report.saved_bytes == step.stored, f"{step.stored} bytes are stored, {report.saved_bytes} were planned"


def _check_text(halves: Rewrite) -> None:
    report = report_of(halves, lowering="eager")
    assert str(report)
    assert json.loads(report.to_json())["schema"]
