"""The pipeline: the passes from a joint graph to its two rewritten halves, by name and in order.

The first list runs once for each joint graph, the second for each setting that is tried (``attempts.py``), the third
on the two graphs that are taken, where Inductor compiles them. ``runner.py`` checks what each pass leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.analysis.layouts import channels_last_images
from fxapprox.codecs import Group
from fxapprox.files.plan_file import SavedPlan
from fxapprox.ir.records import Plan
from fxapprox.passes import runner
from fxapprox.passes.add_rows import add_rows
from fxapprox.passes.advance import advance
from fxapprox.passes.allocate import allocate
from fxapprox.passes.call_arithmetic import call_arithmetic
from fxapprox.passes.checkpoint import checkpoint
from fxapprox.passes.classify import classify
from fxapprox.passes.encode import encode
from fxapprox.passes.hold_decoded import hold_decoded
from fxapprox.passes.lay_out import lay_out
from fxapprox.passes.materialize import materialize, settle_products
from fxapprox.passes.outline import call_codes, call_slices, inline_codes
from fxapprox.passes.partition import partition
from fxapprox.passes.pin_inputs import copied_inputs, pin_inputs
from fxapprox.passes.plan import plan
from fxapprox.passes.restore import restore
from fxapprox.passes.runner import Pass, State
from fxapprox.passes.slice import run_in_slices
from fxapprox.passes.stand_in import stand_in
from fxapprox.sizes import evaluate


def _stand_in(state: State) -> State:
    return replace(state, joint=stand_in(state.joint))


def _advance(state: State) -> State:
    return replace(state, joint=advance(state.joint))


def _classify(state: State) -> State:
    return replace(state, activations=classify(state.joint, min_bytes=state.options.min_bytes))


def _has_saved_plan(state: State) -> bool:
    return isinstance(state.options.plan, SavedPlan) and any(a.demand is not None for a in state.activations)


def _restore(state: State) -> State:
    assert isinstance(state.options.plan, SavedPlan)
    return replace(state, plan=restore(state.options.plan, state.activations, state.options, state.hints))


def _plan(state: State) -> State:
    return replace(state, plan=plan(state.activations, state.options, hints=state.hints))


def _allocate(state: State) -> State:
    hints = state.hints
    allocated = allocate(state.plan, state.activations, state.options, hints)
    exact = plan(state.activations, replace(state.options, bits=None), hints=hints)
    return replace(state, plan=min(allocated, exact, key=lambda each: stored_bytes(each, hints)))


def stored_bytes(chosen: Plan, hints: Mapping[str, int]) -> int:
    """Bytes of what a plan stores, at the sizes of the example."""
    return sum(evaluate(entry.nbytes, hints) for entry in chosen.stored)


def _revise(state: State) -> State:
    assert state.revise is not None
    return replace(state, plan=state.revise(state.plan, state.activations))


def _partition(state: State) -> State:
    forward, backward = partition(state.joint, state.plan)
    return replace(state, forward=forward, backward=backward)


def _find_images(state: State) -> State:
    return replace(state, images=channels_last_images(state.halves[0]))


def _encode(state: State) -> State:
    count = state.joint.num_fwd_outputs
    parts = encode(*state.halves, state.plan, num_fwd_outputs=count, images=state.images)
    return replace(state, parts=parts, spliced=tuple(made.spliced for made in parts if made.spliced is not None))


def _pin_inputs(state: State) -> State:
    pin_inputs(state.halves[0], num_fwd_outputs=state.joint.num_fwd_outputs)
    return state


def _materialize(state: State) -> State:
    materialize(state.halves[0])
    return state


def _finish(state: State) -> State:
    """Orders the two graphs as torch expects them."""
    (output,) = state.halves[0].graph.find_nodes(op="output")
    recopied = copied_inputs(state.halves[0], output.args[0][state.joint.num_fwd_outputs :])
    forward, backward = adapter.finish_split(*state.halves)
    return replace(state, forward=forward, backward=backward, recopied=recopied)


def _settle_products(state: State) -> State:
    settle_products(state.halves[1])
    return state


def _checkpoint(state: State) -> State:
    options = state.options
    assert options.checkpoint is not None
    segments = checkpoint(
        *state.halves, state.parts, options.checkpoint, num_fwd_outputs=state.joint.num_fwd_outputs,
        codec=Group(options.checkpoint_bits) if options.checkpoint_bits else None,
        activations=state.activations, images=state.images, gradients=state.joint.gradients,
    )  # fmt: skip
    added = tuple(spliced for each in segments for spliced in each.spliced)
    return replace(state, segments=segments, spliced=state.spliced + added)


def _hold_decoded(state: State) -> State:
    decoded = {name for parts in state.parts for name in parts.decoded}
    hold_decoded(*state.halves, decoded, num_fwd_outputs=state.joint.num_fwd_outputs, hints=state.hints)
    return state


def _add_rows(state: State) -> State:
    add_rows(state.halves[1])
    return state


def _slice(state: State) -> State:
    count = state.options.slices
    forward, backward, slices = run_in_slices(
        *state.halves, None if count == "auto" else count, num_fwd_outputs=state.joint.num_fwd_outputs,
        lowering=state.options.lowering, hints=state.hints, images=state.images,
    )  # fmt: skip
    return replace(state, forward=forward, backward=backward, slices=slices)


def _lay_out(state: State) -> State:
    lay_out(state.halves[1])
    return state


def _call_slices(state: State) -> State:
    forward, backward = ([part for part in state.slices if part.half == half] for half in ("forward", "backward"))
    return _with(state, call_slices(state.halves[0], forward), call_slices(state.halves[1], backward))


def _call_codes(state: State) -> State:
    return _with(state, *call_codes(*state.halves, state.spliced))


def _call_arithmetic(state: State) -> State:
    return _with(state, *map(call_arithmetic, state.halves))


def _inline_codes(state: State) -> State:
    return _with(state, *inline_codes(*state.halves, state.spliced))


def _with(state: State, forward: fx.GraphModule, backward: fx.GraphModule) -> State:
    return replace(state, forward=forward, backward=backward)


def _for_inductor(state: State) -> bool:
    return state.options.lowering == "inductor"


def _saves_temporaries(state: State) -> bool:
    return state.options.slices is not None and _for_inductor(state)


# What there is to decide on: the joint graph with less that backward reads, and its values classified.
PREPARE = (
    Pass("stand in", _stand_in),
    Pass("advance", _advance),
    Pass("classify", _classify, required=True),
)
# What is stored, and the two graphs along that.
SPLIT = (
    Pass("restore", _restore, applies=_has_saved_plan, required=True),
    Pass("plan", _plan, applies=lambda state: not _has_saved_plan(state), required=True),
    Pass("allocate", _allocate, applies=lambda state: state.options.bits == "auto" and not _has_saved_plan(state)),
    Pass("revise", _revise, applies=lambda state: state.revise is not None, required=True),
    Pass("partition", _partition, required=True),
    Pass("find images", _find_images, applies=_for_inductor),
    Pass("encode", _encode, required=True, numerics=True),
    Pass("pin inputs", _pin_inputs),
    Pass("materialize", _materialize),
    Pass("finish", _finish, required=True),
    Pass("settle products", _settle_products),
    Pass("checkpoint", _checkpoint, applies=lambda state: state.options.checkpoint is not None, numerics=True),
    Pass("lay out", _lay_out, applies=lambda state: bool(state.images)),
    Pass("hold decoded", _hold_decoded, applies=_for_inductor),
    Pass("add rows", _add_rows, applies=_saves_temporaries, numerics=True),
    Pass("slice", _slice, applies=lambda state: state.options.slices is not None, numerics=True, spare=True),
)
# What Inductor is spared. "call arithmetic" stands where decoders are not inlined yet: a function can hold no call.
FOR_INDUCTOR = (
    Pass("call slices", _call_slices, applies=lambda state: bool(state.slices)),
    Pass("call codes", _call_codes),
    Pass("call arithmetic", _call_arithmetic),
    Pass("inline codes", _inline_codes),
)
PASSES = (*PREPARE, *SPLIT, *FOR_INDUCTOR)


def leaving_out(*names: str) -> AbstractContextManager[None]:
    """Leaves these passes out of everything that is compiled meanwhile; see ``runner.leaving_out``."""
    return runner.leaving_out(*names, of=PASSES)


def keeping(*names: str) -> AbstractContextManager[None]:
    """Keeps the two graphs as these passes leave them: ``Rewrite.kept``; see ``runner.keeping``."""
    split = [each.name for each in SPLIT]
    return runner.keeping(*names, of=SPLIT[split.index("partition") :])
