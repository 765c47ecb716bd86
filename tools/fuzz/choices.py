"""Random programs and random options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from fxapprox.codecs import Cast, Codec, Group, Identity, Standard, Threshold, Zero
from fxapprox.ir.records import Activation
from tools.fuzz import blocks, indexing, layers, pointwise, reductions, views
from tools.fuzz.nudge import Nudged
from tools.fuzz.program import IN_PLACE, Program, pruned
from tools.fuzz.scope import Scope

LINES = (*pointwise.LINES, *reductions.LINES, *layers.LINES, *views.LINES, *indexing.LINES, *blocks.LINES)
SHAPES = (("n", 8), ("n", 5, 8), ("n", 4, 4, 4), ("n",), (3, 8), ("n", 16, 4), ("n", 4, "h", "w"), ("n", 64))
FILLS = ("normal", "normal", "steps", "positive", "large", "zeros", "special")
BITS = (4, 8, 2, "auto", {"*": 2})
DTYPES = ("float32", "float64", "float32", "bfloat16")


@st.composite
def programs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Program:
    """A program that needs a gradient, of a few lines."""
    scope = Scope(draw, draw(st.sampled_from(DTYPES)))
    for i in range(scope.integer(1, 2)):
        own = scope.choose((scope.dtype, scope.dtype, "float32"))
        grad = i == 0 or scope.maybe()
        scope.add(
            "x", scope.choose(SHAPES), fill=scope.choose(FILLS), dtype=own, grad=grad, turned=not scope.integer(0, 4)
        )
    for _ in range(scope.integer(3, 14)):
        scope.choose(LINES)(scope)
    dynamic = not scope.integer(0, 7)
    return pruned(Program(tuple(scope.inputs), tuple(scope.lines), _outputs(scope), dynamic, _regions(scope)))


def _regions(scope: Scope) -> tuple[tuple[str, ...], ...]:
    """Up to two runs of lines that the user has computed again; none where something is changed in place."""
    if scope.integer(0, 4) or any(IN_PLACE.search(line) for line in scope.lines):
        return ()
    names = [line.partition(" = ")[0] for line in scope.lines]
    ends = sorted(scope.integer(0, len(names)) for _ in range(4))
    return tuple(tuple(names[start:end]) for start, end in (ends[:2], ends[2:]) if end > start)


def _outputs(scope: Scope) -> tuple[str, ...]:
    """The last value that needs a gradient, and any others: inputs, views, masks, what backward reads."""
    needing = [name for name, value in scope.values.items() if _is_computed(value)]
    assume(needing)
    others = [scope.choose(list(reversed(scope.values))) for _ in range(scope.choose((0, 1, 1, 2)))]
    if scope.maybe():
        others.append(scope.choose(needing))
    return (needing[-1], *others)


def _is_computed(value: Tensor) -> bool:
    """Whether a gradient flows through it to something else."""
    try:
        return value.grad_fn is not None
    except RuntimeError:  # one of several views of what was then changed in place: torch refuses to differentiate it
        return False


def _mixed(value: Activation) -> Codec | None:
    """A codec by the value's size, so that several stand side by side."""
    return (None, Group(4), Group(3), Cast(), Identity(), Zero(2), Threshold(3), None)[value.nbytes // 16 % 8]


POLICIES: dict[str, Callable[[Activation], Codec | None]] = {
    "identity": lambda _: Identity(),
    "nudged": lambda _: Nudged(),
    "hardly nudged": lambda _: Nudged(1e-13),
    "mixed": _mixed,
    "cast": lambda _: Cast(),
    "standard": lambda _: Standard(4),
}


def with_policy(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the function that a policy's name stands for."""
    return options | {"policy": POLICIES[options["policy"]]} if "policy" in options else options


@st.composite
def options(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    """Options that lose something; a policy by its name in ``POLICIES``."""
    chosen: dict[str, Any] = {"bits": draw(st.sampled_from(BITS))}
    if chosen["bits"] == "auto":
        chosen["average_bits"] = draw(st.sampled_from((4, 2, 3.3, 12)))
    rare = {
        "rounding": "stochastic", "checkpoint": draw(st.sampled_from(("sqrt", 2, 3, 0.5))), "min_bytes": 200,
        "policy": draw(st.sampled_from(("mixed", "cast", "standard"))),
    }  # fmt: skip
    chosen |= {name: value for name, value in rare.items() if draw(st.integers(0, 4)) == 4}
    if "checkpoint" in chosen and draw(st.booleans()):
        chosen["checkpoint_bits"] = draw(st.sampled_from((8, 4)))
    if draw(st.integers(0, 199)) == 199:  # it tries a dozen settings
        return {
            "memory_budget": draw(st.sampled_from((0.5, 0.9, 0.3, 1.0, "100B"))),
            "bits": draw(st.sampled_from((8, None))),
        }
    return chosen
