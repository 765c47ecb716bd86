"""What has to hold of every program under all options."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxapprox import Options
from fxapprox.codecs import Copy, Like, encoded
from fxapprox.errors import OptionError
from fxapprox.ir.records import Spliced, Stored
from fxapprox.ir.tensors import memory_order
from fxapprox.passes.encode import _Alone, _read_by
from fxapprox.passes.rewrite import Rewrite, rewrite
from fxapprox.report.accounting import report_of
from tools.fuzz.choices import with_policy
from tools.fuzz.program import SIZES, Program
from tools.fuzz.running import Step, Traced, Untraceable, Way, run, run_joint, serves, split, values_of

TORCH = Path(torch.__file__).parent
OTHER_SIZES = {"n": 9, "h": 6, "w": 8}
SLICED = "sliced"
LOSSY = "lossy "  # and a number: names of partitions
FALLBACK = "fxapprox stores this graph exactly: "
NAMED = re.compile(r"at node '\w+'.*: (?!.*\(\)).+")  # a graph is left alone for a value with a name, and a reason
FREE = {"policy", "checkpoint", "memory_budget", "min_bytes"}  # with these more may be stored than by the exact plan
TOLD = (  # how documented warnings begin
    FALLBACK,
    "average_bits=",
    "checkpoint_bits has nothing to work on",
    "fxapprox computes nothing of this graph again: ",
    "fxapprox: what the policy chose does not fit: ",
)


def check(program: Program, *, lossless: str = "identity", report: bool = False, **options: Any) -> list[str]:
    """Holds partitions of a program against its joint graph, unsplit; see ``check_all``."""
    return check_all(program, [options], lossless=lossless, report=report)


def check_all(program: Program, choices: Sequence[dict[str, Any]], *, lossless: str, report: bool) -> list[str]:
    """Traces a program once, and holds partitions of it against the joint graph, unsplit.

    Args:
        choices: options that lose something, for a partition each; see ``choices.options``.
        lossless: "identity" (every value goes through a codec that loses nothing), or "exact" (``bits=None``).
        report: whether a report is rendered as well.

    Returns: what was noteworthy: graphs left alone, budgets that nothing fits, codecs.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            traced = split(program, _ways(program, lossless, choices))
        except Untraceable as error:
            return [f"not traced: {str(error)[:60]}"]
    if traced.joint is None:
        return ["no gradient"]
    for sizes in (SIZES, OTHER_SIZES):
        if sizes == SIZES or serves(traced.joint, sizes):
            _check_steps(program, traced, sizes)
    lossy = [halves for name, halves in traced.halves.items() if name.startswith(LOSSY)]
    planned = [traced.halves.get(f"{LOSSY}{i}") for i, options in enumerate(choices) if not FREE & options.keys()]
    never_more([halves for halves in planned if halves], traced.halves["exact"])
    if report:
        for halves in lossy[:1]:
            _check_text(halves)
    refused = ["refused: no budget as small"] * (len(choices) - len(lossy))
    codecs = (f"{parts.entry.codec.text} stored" for halves in lossy for parts in halves.parts)
    sliced = ["in slices"] if SLICED in traced.halves and traced.halves[SLICED].slices else []
    return [*_expected(warned), *refused, *codecs, *sliced]


def _ways(program: Program, lossless: str, choices: Sequence[dict[str, Any]]) -> dict[str, Way]:
    """Partitions of a program: without loss, with it, and with values that are off by next to nothing."""
    exactly: dict[str, Any] = {"bits": None} if lossless == "exact" else {"policy": "identity"}
    if segments := [o["checkpoint"] for o in choices if "checkpoint" in o and "checkpoint_bits" not in o]:
        exactly["checkpoint"] = segments[0]
    ways = {"lossless": _way(exactly), **{f"{LOSSY}{i}": _way(options) for i, options in enumerate(choices)}}
    ways["exact"] = _way({"bits": None})
    if any(given.dtype == "float64" for given in program.inputs):
        ways["nudged"] = _way({"policy": "nudged"})
        ways[SLICED] = _way({"bits": None, "slices": 2})
    return ways


def _way(options: dict[str, Any]) -> Way:
    """A partition along these options; none if they are a budget that nothing fits."""
    own = Options(**with_policy({"min_bytes": 0, "lowering": "eager", **options}))

    def run(gm: fx.GraphModule, inputs: Sequence[Any], **rest: Any) -> Rewrite | None:
        try:
            return rewrite(gm, inputs, options=own, **rest)
        except OptionError:
            if "memory_budget" not in options:
                raise
            return None

    return run


def _expected(warned: list[warnings.WarningMessage]) -> list[str]:
    """The texts of our warnings, which are documented ones; torch warns of what the program does."""
    texts = [str(each.message) for each in warned if not Path(each.filename).is_relative_to(TORCH)]
    for text in texts:
        assert text.startswith(TOLD), f"warns: {text}"
        assert not text.startswith(FALLBACK) or NAMED.search(text), f"no reason: {text}"
    return texts


def _check_steps(program: Program, traced: Traced, sizes: Mapping[str, int]) -> None:
    """Runs a step of each partition, and of the joint graph."""
    assert traced.joint is not None
    try:
        expected = run_joint(program, traced.joint, sizes=sizes)
    except RuntimeError:
        return  # torch itself cannot run it
    found = {
        name: run(program, each, sizes=sizes, record=name.startswith(LOSSY)) for name, each in traced.halves.items()
    }
    for name, step in found.items():
        if name != SLICED or not traced.halves[name].slices:
            same(step.outputs, expected.outputs, f"{name}: output")
            same(step.inputs, expected.inputs, f"{name}: input, after forward,")
        finite_as(step.gradients, expected.gradients, name)
    _same_gradients(traced.halves["lossless"], found["lossless"], expected)
    for name in (name for name in found if name.startswith(LOSSY)):
        stored_as_planned(traced.halves[name], found[name], sizes)
        if not program.dynamic:  # codecs' groups depend on which sizes are symbolic
            within_bounds(traced.halves[name], found[name])
    if "nudged" in found:
        undecided(program, found["nudged"], expected, sizes)
        but_for_rounding(found[SLICED], found["nudged"], expected)


def _same_gradients(halves: Rewrite, step: Step, expected: Step) -> None:
    """Every bit; or all but rounding where a part of a tensor was copied out: products add up in memory's order."""
    if any(isinstance(parts.entry.codec, Copy) for parts in halves.parts):
        for one, other in zip(step.gradients, expected.gradients, strict=True):
            if isinstance(other, Tensor):
                share = max(1e-4, 4 * torch.finfo(other.dtype).eps)
                torch.testing.assert_close(one, other, rtol=share, atol=share * _largest(other), equal_nan=True)
    else:
        same(step.gradients, expected.gradients, "lossless: gradient")


def _largest(value: Tensor) -> float:
    finite = value[value.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


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


def undecided(program: Program, nudged: Step, expected: Step, sizes: Mapping[str, int]) -> None:
    """Nothing is decided on an approximate value: nudged by a 1000th as much, it moves gradients by far less.

    Where next to nothing moves them by a lot and in proportion, the program is like that: it divides by little.
    """
    moved = _moves(nudged, expected)
    if moved > 1e-5:
        hardly = split(program, {"hardly": _way({"policy": "hardly nudged"})}).halves["hardly"]
        less = _moves(run(program, hardly, sizes=sizes), expected)
        assert less < moved / 10, f"nudged, gradients move by {moved}; by a 1000th of that, by {less}"


def but_for_rounding(sliced: Step, nudged: Step, expected: Step) -> None:
    """Slices move gradients by rounding: by less than values do that are off by next to nothing."""
    moved = _moves(sliced, expected)
    assert moved < max(1e-9, _moves(nudged, expected)), f"in slices, gradients move by {moved}"
    for i, (one, other) in enumerate(zip(sliced.outputs, expected.outputs, strict=True)):
        if isinstance(other, Tensor) and other.dtype == torch.float64 and bool(other.isfinite().all()):
            share = float((one - other).abs().max()) / (_largest(other) + 1e-6) if other.numel() else 0.0
            assert share < 1e-9, f"in slices, output {i} is off by {share}"


def _moves(found: Step, expected: Step) -> float:
    """How far gradients are from the exact ones, as a share of the largest; 0 if those are not finite."""
    exact = expected.gradient
    if not exact.numel() or not bool(exact.isfinite().all()):
        return 0.0
    return float((found.gradient - exact).abs().max()) / (float(exact.abs().max()) + 1e-6)


def within_bounds(halves: Rewrite, step: Step) -> None:
    """Every decoded value is as close to the value as its codec says, and every decision the one that was taken."""
    left = {node.name: node for node in halves.forward.graph.nodes}
    again = {name for segment in halves.segments for name in segment.recomputed}
    for parts in halves.parts:
        entry, spliced = parts.entry, parts.spliced
        if again.intersection(node.name for node in parts.nodes):
            continue  # encoded again in backward, maybe from an approximate value
        if spliced is None or any(name not in left for name in (entry.name, *entry.predicates, *entry.carried)):
            continue
        context = _read_by(entry, left)
        if all(node.name in step.forward for node in context.nodes):
            _check_value(entry, context, _results(spliced, halves), step)
            for name in entry.predicates:
                _check_decision(name, spliced, step)


def _results(spliced: Spliced, halves: Rewrite) -> list[str]:
    """What the rest of backward reads of a decoder: of one that is asked for its mask alone, no value."""
    own = set(spliced.decode)
    nodes = halves.backward.graph.nodes
    return [node.name for node in nodes if node.name in own and any(user.name not in own for user in node.users)]


def _check_value(entry: Stored, context: _Alone, results: list[str], step: Step) -> None:
    x = step.forward[entry.name]
    found = _decoded(results, step, x)
    if found is None:
        return
    given = context.context(x, [step.forward[node.name] for node in context.nodes])
    code = encoded(entry.codec, x, given)
    off = (found.double() - x.double()).abs()
    bound = entry.codec.bound(code, Like.of(x, memory_order(x))).double()
    fine = (off <= bound) | ~x.isfinite() | ~bound.isfinite() | (found == x)
    assert bool(fine.all()), (
        f"{entry.name}: {entry.codec.text} says within {bound.expand(x.shape)[~fine][:3]},"
        f" but makes {found[~fine][:3]} of {x[~fine][:3]}"
    )


def _check_decision(name: str, spliced: Spliced, step: Step) -> None:
    """One of the codec's masks is the decision that was taken, if it has any."""
    taken = step.forward[name]
    made = [step.backward[node] for node in spliced.decode if node in step.backward]
    masks = [value for value in made if isinstance(value, Tensor) and value.dtype == torch.bool]
    masks = [mask for mask in masks if mask.shape == taken.shape]
    assert not masks or any(torch.equal(mask, taken) for mask in masks), f"{name}: decided otherwise"


def _decoded(results: list[str], step: Step, x: Tensor) -> Tensor | None:
    """What backward makes of a code: the last value of the original's shape and type."""
    made = [step.backward.get(name) for name in results]
    alike = [value for value in made if isinstance(value, Tensor) and (value.shape, value.dtype) == (x.shape, x.dtype)]
    return alike[-1] if alike else None


def stored_as_planned(halves: Rewrite, step: Step, sizes: Mapping[str, int]) -> None:
    """The report's bytes are those that forward leaves."""
    report = report_of(halves, lowering="eager")
    if report.sizes and sizes != SIZES:
        values = values_of(halves.joint.gm, sizes)
        report = report.at({symbol.name: values[symbol.name] for symbol in report.sizes})
    assert report.saved_bytes == step.stored, f"{step.stored} bytes are stored, {report.saved_bytes} were planned"


def never_more(coded: Sequence[Rewrite], exact: Rewrite) -> None:
    """Coded plans store no more than the exact one, and that no more than torch's own partition."""
    report = report_of(exact, lowering="eager")
    assert report.saved_bytes <= report.baseline_bytes, (
        f"the exact plan stores {report.saved_bytes} bytes, torch's partition {report.baseline_bytes}"
    )
    for halves in coded:
        stored = report_of(halves, lowering="eager").saved_bytes
        assert stored <= report.saved_bytes, f"{stored} bytes in codes, {report.saved_bytes} exactly"


def _check_text(halves: Rewrite) -> None:
    report = report_of(halves, lowering="eager")
    assert str(report)
    assert json.loads(report.to_json())["schema"]
