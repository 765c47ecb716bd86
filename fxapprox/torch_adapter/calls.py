# pyright: reportPrivateImportUsage=false
"""Dynamo around a compiled model: a context for each of its calls, a limit of recompilations of its own, its name."""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch._dynamo.config as dynamo_config
from torch._dynamo import eval_frame
from torch._dynamo.backends import registry
from torch._dynamo.convert_frame import CatchErrorsWrapper
from torch._dynamo.guards import get_and_maybe_log_recompilation_reasons
from torch._guards import CompileContext

from fxapprox.torch_adapter.dynamo import context_of, many_compilations

ENTER = "backend_ctx_ctor"  # the attribute of a backend that Dynamo enters a context from, at each call


def enter_at_calls(compiled: object, enter: Callable[[], AbstractContextManager[Any]]) -> None:
    """Has what torch.compile returned enter a context at each call, as Dynamo does for a backend that asks for it."""
    context = context_of(compiled)
    if context is None:  # torch.compile is switched off, and gave back the model
        return

    def entered() -> Callable[[], object]:
        inside = enter()
        inside.__enter__()
        return lambda: inside.__exit__(None, None, None)

    context._backend_ctx_ctor = enter  # copies and pickles are made with it
    context.enter_exit_hooks.append(entered)


def enter_when_wrapped(compiler: Any, enter: Callable[[], AbstractContextManager[Any]]) -> None:
    """The same for the model that torch.compile is about to compile with the backend it is looking up."""
    owners = (frame.f_locals.get("self") for frame in _frames())
    owner = next((each for each in owners if type(each).__name__ == "_TorchCompileWrapper"), compiler)
    setattr(owner, ENTER, enter)


def make_at_lookup(name: str, make: Callable[[], Any]) -> None:
    """Has each torch.compile(backend=name) get a backend of its own; torch would hand all of them the first one.

    Settings from outside are those of the moment in which a model is compiled, and only here is it known.
    """
    plain = registry.lookup_backend

    def lookup(compiler: Any) -> Any:
        return make() if isinstance(compiler, str) and compiler == name else plain(compiler)

    registry.lookup_backend = lookup


@dataclass(frozen=True)
class Call:
    """A call of a compiled model that is about to begin.

    Attributes:
        callback: Dynamo's, which lives as long as what torch.compile returned.
        function: what was compiled; a module's ``__call__``.
    """

    callback: CatchErrorsWrapper
    function: Callable[..., Any]


def beginning_call() -> Call:
    """The call that Dynamo is entering contexts for."""
    for frame in _frames():
        owner = frame.f_locals.get("self")
        if isinstance(owner, eval_frame._TorchDynamoContext) and isinstance(owner.callback, CatchErrorsWrapper):
            return Call(owner.callback, frame.f_locals.get("fn", lambda: None))
    raise AssertionError("Dynamo enters a context, and no call of a compiled model is on the stack")


def innermost(callback: CatchErrorsWrapper) -> Any:
    """The torch.compile wrapper of a backend behind one of Dynamo's callbacks."""
    return eval_frame.innermost_backend(callback)


def _frames() -> Iterator[types.FrameType]:
    """Those of the caller's callers, a dozen at most."""
    frame: types.FrameType | None = sys._getframe(2)
    for _ in range(12):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def is_switched_off() -> bool:
    """Whether the user has torch.compile do something else than compile what is new (``set_stance``, ``disable``)."""
    return eval_frame._stance.stance != "default" or dynamo_config.disable


def function_compiled() -> int | None:
    """Which function of the user's Dynamo is compiling; the same one again has the same number."""
    compiling = CompileContext.current_compile_id()
    return compiling.frame_id if compiling is not None else None


def limit_by_model(callback: CatchErrorsWrapper, exceeded: Callable[[types.CodeType, int, str], None]) -> None:
    """Counts this model's compilations of a function alone towards ``torch._dynamo.config.recompile_limit``.

    Dynamo counts those of all models of a class, which have their code in common, and runs the ninth uncompiled.
    ``exceeded`` is called with the code, the limit and why it was compiled last, before Dynamo gives up.
    """
    inner: Any = callback._torchdynamo_orig_backend
    if not isinstance(inner, _Converter):
        callback._torchdynamo_orig_backend = _Converter(inner, exceeded)


@dataclass(eq=False)
class _Converter:
    """Dynamo's conversion of functions into graphs, for one model."""

    inner: Any
    exceeded: Callable[[types.CodeType, int, str], None]
    made: weakref.WeakSet[types.CodeType] = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        self._torchdynamo_orig_backend = self.inner._torchdynamo_orig_backend  # Dynamo looks for the backend here

    def __call__(self, frame: Any, cache_entry: Any, hooks: Any, frame_state: Any, *, skip: int = 0) -> Any:
        code, limit = frame.f_code, dynamo_config.recompile_limit
        mine = [each for each in eval_frame._debug_get_cache_entry_list(code) if each.code in self.made]
        full = len(mine) >= limit
        if full:
            backend = eval_frame.innermost_backend(self)
            reasons = get_and_maybe_log_recompilation_reasons(mine, frame, backend, skip_logging=True)
            self.exceeded(code, limit, reasons[0] if reasons else "")
        with nullcontext() if full else many_compilations():
            result = self.inner(frame, cache_entry, hooks, frame_state, skip=skip + 1)
        if result.guarded_code is not None:
            self.made.add(result.guarded_code.code)
        return result

    @property
    def _clone_with_backend(self) -> Callable[..., Any]:
        return self.inner._clone_with_backend

    def __reduce__(self) -> tuple[Any, ...]:
        return _Converter, (self.inner, self.exceeded)
