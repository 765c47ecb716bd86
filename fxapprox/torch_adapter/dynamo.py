# pyright: reportPrivateImportUsage=false
"""Dynamo: what it compiled and where it gave up, its errors, and what torch.compile returned."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
from torch import fx
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import ShortenTraceback, TorchDynamoException, TorchRuntimeError
from torch._dynamo.utils import counters, graph_break_reasons
from torch._logging import trace_structured
from torch._logging._internal import trace_log
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from fxapprox.torch_adapter.symbols import hint, is_size


def input_names(gm: fx.GraphModule) -> tuple[str, ...]:
    """What the user calls the inputs of a Dynamo graph: "blocks.0.weight" for parameters, "args[0]"; "" if unknown."""
    return tuple(_input_name(getattr(node, "_dynamo_source", None)) for node in gm.graph.find_nodes(op="placeholder"))


def _input_name(source: Any) -> str:
    if source is None:
        return ""
    name = str(source.name() if callable(source.name) else source.name)  # a property since torch 2.10
    name = re.sub(r"\._(?:modules|parameters|buffers)\['([^']*)'\]", r".\1", name)
    name = re.sub(r"\.__closure__\[\d+\]\.cell_contents$", "", name)  # a variable of a function: the function
    name = re.sub(r"^.*cell_contents\.|^[LG]\['\w+'\]\.", "", name)
    return re.sub(r"\b[LG]\['(\w+)'\]", r"\1", name)


def input_position(node: fx.Node) -> int | None:
    """Which input of the Dynamo graph an input of the joint graph is; None for those that AOTAutograd made up."""
    return getattr(node.meta.get("desc"), "idx", None)


# Sources of inputs: parameters, buffers, globals, variables of enclosing functions; local variables and their parts.
KEPT = re.compile(r"\._(parameters|buffers)\[|cell_contents$|^G\['\w+'\]$|^G\['__import_\w+'\]\.\w+$")
LOCAL = re.compile(r"L\['\w+'\](\[[^\]]*\])*")


def ends_in_a_break(gm: fx.GraphModule) -> bool:
    """Whether the model goes on behind a Dynamo graph: at a graph break, not at the end of its function."""
    return bool(getattr(getattr(gm, "compile_subgraph_reason", None), "graph_break", False))


def counted_inputs(gm: fx.GraphModule, inputs: Sequence[Any]) -> Iterator[tuple[int, bool]]:
    """(position, whether it is an activation) of the inputs of a Dynamo graph that are no parameters, buffers, globals,
    variables of an enclosing function or arguments of the caller's.

    Activations are results of autograd, and local variables; the others are attributes of the model, which stay. To be
    asked while Dynamo compiles the graph: the arguments are found on the stack.
    """
    given = _callers_memory()
    for at, (node, value) in enumerate(zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=False)):
        if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
            continue
        source = getattr(node, "_dynamo_source", None)
        name = str(source.name() if callable(source.name) else source.name) if source is not None else ""
        if not value.is_leaf:
            yield at, True
        elif (
            not value.requires_grad and given is not None and storage_key(value) not in given and not KEPT.search(name)
        ):
            yield at, LOCAL.fullmatch(name) is not None


def storage_key(tensor: torch.Tensor) -> StorageWeakRef:
    """The memory of a tensor, without keeping it alive."""
    return StorageWeakRef(tensor.untyped_storage())


def _callers_memory() -> set[StorageWeakRef] | None:
    """The memory of all tensors with which the outermost compiled function on the stack was called; None: unknown."""
    frame, found = sys._getframe(1), None
    while frame is not None:
        if frame.f_code.co_name == "compile_wrapper" and "prior" in frame.f_locals:
            found = frame
        frame = frame.f_back
    if found is None:
        return None
    memory: set[StorageWeakRef] = set()
    stack: list[Any] = [found.f_locals.get("args", ()), found.f_locals.get("kwargs", {})]
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, (torch.nn.Module, type)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            memory.add(storage_key(value))
        elif isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack += value
        elif hasattr(value, "__dict__"):  # a batch in a class of the user's own
            stack += vars(value).values()
    return memory


def many_compilations() -> contextlib.AbstractContextManager[None]:
    """Has Dynamo compile a function as often as it is asked to; beyond a limit it would run it uncompiled."""
    unlimited = 2**31
    return dynamo_config.patch(recompile_limit=unlimited, accumulated_recompile_limit=unlimited)


def graphs_compiled() -> int:
    """Graphs that Dynamo has handed to backends in this process, for training and for inference."""
    return counters["stats"]["unique_graphs"]


@contextlib.contextmanager
def graph_breaks() -> Iterator[list[tuple[str, list[traceback.FrameSummary]]]]:
    """Collects (reason, user's frames) of each graph break inside; the list is filled at the end."""
    before = len(graph_break_reasons)
    found: list[tuple[str, list[traceback.FrameSummary]]] = []
    yield found
    found += [(each.reason, list(each.user_stack)) for each in graph_break_reasons[before:] if each.graph_break]


def user_error(error: BaseException) -> tuple[BaseException, list[traceback.FrameSummary]]:
    """The error that the user's code raised, out of Dynamo's own if it is in one, and the frames to it."""
    if isinstance(error, TorchRuntimeError):
        inner: BaseException = error
        while inner.__context__ is not None and (
            isinstance(inner, TorchDynamoException) or str(inner).startswith("Dynamo failed to run")
        ):
            inner = inner.__context__
        return inner, list(error.real_stack)
    if isinstance(error, TorchDynamoException):
        return error, []  # torch's own trouble, or ours
    if failed_in_tracing(error):
        return error, list(error.real_stack)  # type: ignore[attr-defined]
    return error, list(traceback.extract_tb(error.__traceback__))


def failed_in_tracing(error: BaseException) -> bool:
    """Whether the user's code raised it while Dynamo traced: Dynamo wraps it, or adds the user's frames."""
    return isinstance(error, TorchRuntimeError) or (
        hasattr(error, "real_stack") and not isinstance(error, TorchDynamoException)
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch from logging what is raised or reported anyway; TORCH_LOGS has the last word."""
    loggers = [] if os.environ.get("TORCH_LOGS") else map(logging.getLogger, ("torch._dynamo", "torch._subclasses"))
    levels = [(logger, logger.level) for logger in loggers]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """Adds an artifact to torch's structured trace (TORCH_TRACE); ``payload`` is called only if somebody takes it.

    torch itself asks for no more than a handler; pytest adds some to every logger, for warnings.
    """
    if any(handler.level <= logging.DEBUG for handler in trace_log.handlers):
        trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


def through_dynamo(error: Exception) -> Exception:
    """The same error as one that Dynamo hands to the caller of the model as it is, not inside one of its own."""
    kind: Any = type(error)
    transparent = type(kind.__name__, (kind, ShortenTraceback), {"__module__": kind.__module__})
    twin = transparent.__new__(transparent, *error.args)
    twin.args = error.args
    twin.__dict__.update({**error.__dict__, "first_useful_frame": None})
    return twin


def stand_in_outputs(gm: fx.GraphModule, mode: FakeTensorMode | None = None) -> Callable[..., list[Any]]:
    """A function that returns zeros where a Dynamo graph returns tensors, and runs nothing.

    With a mode, the zeros are fake as well.
    """
    output = next(iter(gm.graph.find_nodes(op="output")))
    examples = [n.meta.get("example_value", n) if isinstance(n, fx.Node) else n for n in output.args[0]]

    def run(*_: Any) -> list[Any]:
        with mode or contextlib.nullcontext():
            return [_zeros_like(e) if isinstance(e, torch.Tensor) else hint(e) if is_size(e) else e for e in examples]

    return run


def _zeros_like(example: torch.Tensor) -> torch.Tensor:
    shape = [hint(size) for size in example.shape]
    zeros = torch.zeros(shape, dtype=example.dtype, device=example.device)
    if not example.requires_grad:
        return zeros
    return zeros.add_(torch.zeros((), dtype=example.dtype, device=example.device, requires_grad=True))  # no leaf


def compiler_of(compiled: object) -> object | None:
    """The torch.compile wrapper (or backend) inside what torch.compile returned; None for anything else."""
    found = callback_of(compiled) or getattr(compiled, "_torchdynamo_orig_backend", None)
    while True:
        inner = next(
            (
                getattr(found, name)
                for name in ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")
                if getattr(found, name, None) is not None
            ),
            None,
        )
        if inner is None:
            return found
        found = inner


def is_compiled(model: object) -> bool:
    """Whether torch.compile returned this."""
    return isinstance(model, OptimizedModule) or hasattr(model, "_torchdynamo_orig_callable")


def compiled_parts(model: object) -> list[object]:
    """What torch.compile returned, in the order in which a model holds it: itself, or modules that are inside of it."""
    if not isinstance(model, torch.nn.Module) or isinstance(model, OptimizedModule):
        return [model]
    inside = ((module, module._compiled_call_impl) for module in model.modules())  # set by nn.Module.compile
    return [call or module for module, call in inside if call is not None or isinstance(module, OptimizedModule)]


def context_of(compiled: object) -> Any:
    """Dynamo's context of what torch.compile returned: a module has it, a function closes over it; None without one."""
    if not inspect.isfunction(compiled):
        return getattr(compiled, "dynamo_ctx", None)
    cells = dict(zip(compiled.__code__.co_freevars, compiled.__closure__ or (), strict=True))
    return cells["self"].cell_contents if "callback" in cells else None


def callback_of(compiled: object) -> Any:
    """What Dynamo calls to compile a function; it lives as long as what torch.compile returned."""
    return getattr(context_of(compiled), "callback", None)
