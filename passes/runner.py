"""The runner: passes one after the other, each timed, and what it leaves checked.

A pass is a function from one ``State`` to the next. Which there are, and in which order, is ``pipeline.py``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import FxApproxError, OptionError
from fxapprox.ir.joint import Joint
from fxapprox.ir.records import Activation, Plan, Segment, Slices, Spliced
from fxapprox.ir.verify import verify, verify_halves
from fxapprox.options import Options
from fxapprox.passes.encode import Parts
from fxapprox.sizes import hints_of
from fxapprox.torch_adapter import Partition

_left_out: ContextVar[frozenset[str]] = ContextVar("left out", default=frozenset())
_kept: ContextVar[frozenset[str]] = ContextVar("kept", default=frozenset())


@dataclass(frozen=True)
class State:
    """What passes hand each other; each fills in its own fields.

    Attributes:
        joint: the joint graph.
        options: what the user asked for, or less.
        revise: changes the plan before the graph is split along it; None: nobody does.
        activations: every forward value, classified.
        plan: what is stored, in which codec, and what is recomputed.
        forward, backward: the two graphs; None until they are split.
        images: names of the values that lie channels-last in memory.
        parts: what forward returns for each entry of the plan.
        recopied: names of the inputs of which Inductor stores a channels-last copy.
        segments: what backward computes again from checkpoints.
        spliced: where codecs stand in the two graphs.
        slices: the parts that run slice by slice.
        kept: {pass: copies of the two graphs as it left them}, for the passes named to ``keeping``.
    """

    joint: Joint
    options: Options
    revise: Callable[[Plan, Sequence[Activation]], Plan] | None = None
    activations: tuple[Activation, ...] = ()
    plan: Plan = field(default_factory=lambda: Plan((), ()))
    forward: fx.GraphModule | None = None
    backward: fx.GraphModule | None = None
    images: frozenset[str] = frozenset()
    parts: tuple[Parts, ...] = ()
    recopied: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    spliced: tuple[Spliced, ...] = ()
    slices: tuple[Slices, ...] = ()
    kept: Mapping[str, Partition] = field(default_factory=dict)

    @property
    def halves(self) -> Partition:
        """The two graphs, once there are two."""
        assert self.forward is not None
        assert self.backward is not None
        return self.forward, self.backward

    @property
    def hints(self) -> dict[str, int]:
        """The sizes of the example, by their symbols."""
        return hints_of(adapter.dynamic_sizes(self.joint.gm))


@dataclass(frozen=True)
class Pass:
    """One step.

    Attributes:
        name: what it is called in times, messages and ``leaving_out``.
        run: from one state to the next; it may change the state's two graphs in place.
        applies: whether there is anything for it to do.
        required: the rest needs what it makes.
        numerics: whether it changes gradients, within what the plan's codecs lose.
        spare: whether it leaves the graphs given untouched, so that it is left out, with a warning, where it fails.
    """

    name: str
    run: Callable[[State], State]
    applies: Callable[[State], bool] = lambda state: True
    required: bool = False
    numerics: bool = False
    spare: bool = False


def run(state: State, passes: Sequence[Pass], clock: Clock, *, without: Collection[str] = ()) -> State:
    """Runs the passes that apply, in order; where there are two graphs, checks them after each.

    Args:
        clock: gets the seconds of each pass.
        without: names of passes to leave out.

    Raises:
        UnsupportedGraph: a pass says so, or the graphs that it left do not fit together.
    """
    left_out = _left_out.get().union(without)
    for each in passes:
        if each.name in left_out or not each.applies(state):
            continue
        state = _run(each, state)
        if each.name in _kept.get() and state.forward is not None:
            copies = tuple(map(adapter.copy_module, state.halves))
            state = replace(state, kept={**state.kept, each.name: copies})
        clock.lap(each.name)
    return state


def _run(each: Pass, state: State) -> State:
    try:
        found = each.run(state)
        if found.forward is not None:
            _check(found, each)
    except Warning:
        raise  # the user's filters make errors of them
    except Exception as error:
        if not each.spare or state.options.strict:
            raise
        why = str(error) if isinstance(error, FxApproxError) else f"please report {type(error).__name__}: {error}"
        warnings.warn(f"fxapprox leaves out {each.name!r} for this graph: {why}", stacklevel=2)
        return state
    return found


def _check(state: State, after: Pass) -> None:
    forward, backward = state.halves
    verify_halves(forward, backward, state.joint.num_fwd_outputs, after.name)
    nodes = {node.name: node for node in backward.graph.nodes}
    decoded = {nodes[name]: parts.entry.name for parts in state.parts for name in parts.decoded if name in nodes}
    verify(backward, decoded)


@contextmanager
def leaving_out(*names: str, of: Sequence[Pass]) -> Iterator[None]:
    """Leaves passes out of everything that is compiled meanwhile, to see what they give.

    Args:
        names: passes that are not required.
        of: all passes.

    Raises:
        OptionError: there is no such pass, or the others need it.
    """
    require(names, [each.name for each in of if not each.required], "can be left out")
    token = _left_out.set(_left_out.get().union(names))
    try:
        yield
    finally:
        _left_out.reset(token)


@contextmanager
def keeping(*names: str, of: Sequence[Pass]) -> Iterator[None]:
    """Keeps copies of the two graphs as these passes leave them, of every graph that is rewritten meanwhile.

    Raises:
        OptionError: there is no such pass.
    """
    require(names, [each.name for each in of], "has two graphs to show")
    token = _kept.set(frozenset(names))
    try:
        yield
    finally:
        _kept.reset(token)


def require(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raises OptionError for the first name that is none of ``known``, the passes of which ``what`` holds."""
    for name in names:
        if name not in known:
            raise OptionError(f"no pass {name!r} {what}; expected one of {', '.join(known)}")


def left_out() -> frozenset[str]:
    """The passes that are being left out: part of the key of compiled graphs."""
    return _left_out.get()


class Clock:
    """Seconds from one lap to the next, added up by name in ``laps``."""

    def __init__(self, laps: dict[str, float] | None = None) -> None:
        self.laps: dict[str, float] = {} if laps is None else laps
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = self.laps.get(name, 0.0) + now - self._last, now
