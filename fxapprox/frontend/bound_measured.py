"""Measures, in a graph's first backward, what each code costs in each gradient, and chooses what keeps a bound.

Every value that a code may stand for is put in its code by itself, and backward runs again from there; that its error
in other numbers of bits follows the codec's distortion is taken for granted. What is chosen by that
(``planning/bound.py``) then runs with all its codes at once, and is corrected until it keeps the bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxapprox.files.plan_file import SavedPlan, saved_entries
from fxapprox.frontend.probing import Probed, Replay
from fxapprox.ir.records import Activation, Stored
from fxapprox.options import Options
from fxapprox.passes.allocate import adjustable, levels, with_bits
from fxapprox.passes.pipeline import stored_bytes
from fxapprox.passes.plan import plan
from fxapprox.planning.bound import Choice, counted, fewest_bits
from fxapprox.sizes import evaluate, hints_of
from fxapprox.torch_adapter import dynamic_sizes

SINGLE = 3.0  # a parameter's own gradient may be so many times as far off as the whole
STEPS = 30  # that measuring may take, in time
BACKWARD = 2 / 3  # of a step
TRIES = 5  # of what was chosen
TINY = 1e-9  # of a limit, where there is nothing left of it
MEASURED = 4  # bits that a code is measured in, if its class allows so few
WHY = "exact: the bound on the gradients' error asks for it"

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a first step has led to.

    Attributes:
        plan: what is to be stored; None: nothing in a code.
        error, worst: relative errors of the whole gradient, and of the worst parameter's that counts.
        seconds: that it took.
        steps: the time of so many steps.
    """

    plan: SavedPlan | None
    error: float
    worst: float
    seconds: float
    steps: float


def tried(entry: Stored, value: Activation, options: Options) -> tuple[int, ...]:
    """The numbers of bits that are in a probe: all that the entry's class allows."""
    return levels(entry) if adjustable(entry, value, options) else ()


def measured(
    probed: Probed, replay: Replay, options: Options, bound: float, *, parameters: frozenset[int],
    advance: Callable[[float], None],
) -> Found | None:  # fmt: skip
    """The least that may be stored within a bound; None where gradients are zero or not finite: ask another batch.

    Args:
        options: those that the plan was made for.
        bound: of the whole gradient's relative error, and a third of each parameter's.
        parameters: which of backward's outputs are gradients of parameters; the others are handed on to earlier graphs.
        advance: told the share of the work that is done.
    """
    began = time.perf_counter()
    gradients = _Gradients(replay.exact, parameters, bound)
    if not gradients.usable:
        return None
    values = {a.name: a for a in probed.result.activations}
    entries = {entry.name: entry for entry in probed.plan.stored if entry.name in probed.probes}
    hints = hints_of(dynamic_sizes(probed.result.traced.gm))
    width = {name: 8 * values[name].dtype.itemsize for name in entries}  # type: ignore[union-attr]
    size = {name: _sizes(entry, values[name], hints) for name, entry in entries.items()}

    def run(bits: Mapping[str, int]) -> Vector:
        """The errors with all these codes at once; what is exact has none."""
        coded = {
            probed.probes[n][1][0]: replay.approximation(*probed.probes[n], b) for n, b in bits.items() if b != width[n]
        }
        return gradients.errors(replay.run(coded)) if coded else np.zeros_like(gradients.limits)

    step = replay.seconds / BACKWARD
    deadline = began + STEPS * step - TRIES * replay.seconds
    errors: dict[str, dict[int, Vector]] = {}
    for done, name in enumerate(sorted(entries, key=lambda n: -max(size[n].values()))):
        if time.perf_counter() > deadline:
            break
        known = entries[name].codec.distortion
        bits = MEASURED if MEASURED in size[name] else min(size[name])
        alone = run({name: bits})
        errors[name] = {b: alone * (known[b] / known[bits]) for b in levels(entries[name])} | {width[name]: 0 * alone}
        advance((done + 1) / (len(entries) + TRIES))
    rest = {name: max(levels(entries[name])) for name in entries.keys() - errors.keys()}  # as well as a code can
    choices = [Choice(name, size[name], errors[name]) for name in errors]
    chosen, error = _kept(choices, gradients.limits, rest, run, width)
    least = with_bits(probed.plan, chosen, probed.result.activations, options, hints, WHY)
    exact = plan(probed.result.activations, Options(bits=None, min_bytes=options.min_bytes), hints=hints)
    coded = stored_bytes(least, hints) < stored_bytes(exact, hints) and any(b <= 8 for b in chosen.values())
    took = time.perf_counter() - began
    saved = SavedPlan((saved_entries(least, probed.result.activations),)) if coded else None
    whole, worst = gradients.told(error) if coded else (0.0, 0.0)
    return Found(saved, whole, worst, took, took / step)


def _kept(
    choices: Sequence[Choice], limits: Vector, rest: Mapping[str, int], run: Callable[[Mapping[str, int]], Vector],
    width: Mapping[str, int],
) -> tuple[dict[str, int], Vector]:  # fmt: skip
    """Bits for each value that keep the limits when all codes are there at once, and the errors then.

    Args:
        rest: bits of values that were not measured.
        run: the errors with all codes of some bits.
        width: the bits of each value that is exact.
    """
    share, base = 1.0, run(rest)
    for _ in range(TRIES - 1):
        bits = {**fewest_bits(choices, np.maximum(limits * share - base, limits * TINY)), **rest}
        error = run(bits)
        if (ratio := float((error / limits).max())) <= 1:
            return bits, error
        share *= 0.9 / ratio if math.isfinite(ratio) else 0.0
    exact = {name: width[name] for name in (*rest, *(choice.name for choice in choices))}
    return exact, np.zeros_like(limits)  # nothing in a code keeps it


def _sizes(entry: Stored, value: Activation, hints: Mapping[str, int]) -> dict[int, int]:
    """{bits: bytes that a value takes}, the number of bits of the value itself among them."""
    codec = entry.codec
    found = {
        bits: evaluate(replace(codec, bits=bits).nbytes(value.sizes, value.dtype), hints)  # type: ignore[type-var]
        for bits in levels(entry)
    }
    elements = evaluate(math.prod(value.sizes), hints)
    itemsize = value.dtype.itemsize  # type: ignore[union-attr]
    return found | {8 * itemsize: elements * itemsize}


class _Gradients:
    """The exact gradients of a graph, and the squared relative errors that count beside them.

    In this order: of all parameters together, of what is handed on to earlier graphs together, of each parameter.

    Attributes:
        limits: of these errors.
        usable: whether there is anything to compare with.
    """

    def __init__(self, exact: Sequence[object], parameters: frozenset[int], bound: float) -> None:
        self._exact = {i: g for i, g in enumerate(exact) if isinstance(g, Tensor) and g.is_floating_point()}
        energy = {i: float(g.double().square().sum()) for i, g in self._exact.items()}
        own = [i for i in self._exact if i in parameters]
        self._single = [own[k] for k in counted([math.sqrt(energy[i]) for i in own])]
        self._groups = [own, [i for i in self._exact if i not in parameters], *([i] for i in self._single)]
        self._energy = np.array([sum(energy[i] for i in group) for group in self._groups])
        self.limits = np.array([bound**2, bound**2, *[(SINGLE * bound) ** 2] * len(self._single)])
        self.usable = bool(np.isfinite(self._energy).all() and self._energy.any())

    def errors(self, found: Sequence[object]) -> Vector:
        """Of other gradients; infinite where they are not finite."""
        squared = {
            i: float((g.double() - exact.double()).square().sum())
            for i, exact in self._exact.items() if isinstance(g := found[i], Tensor)
        }  # fmt: skip
        sums = np.array([sum(squared.get(i, 0.0) for i in group) for group in self._groups])
        relative = np.divide(sums, self._energy, out=np.zeros_like(sums), where=self._energy > 0)
        return np.nan_to_num(relative, nan=np.inf, posinf=np.inf)

    def told(self, squared: Vector) -> tuple[float, float]:
        """The error of all together, and of the worst parameter."""
        whole = float(max(squared[:2]))
        return math.sqrt(whole), math.sqrt(float(max(squared[2:], default=whole)))
