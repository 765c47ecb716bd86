"""How much memory training needs: bytes stored for backward, and the allocator's real peak.

The two are different questions. `stored_bytes` asks what forward leaves behind for backward: it walks the
autograd graph from the outputs and adds up the storages its nodes hold. `peak_bytes` asks how far the memory
in use rises during a call, temporaries included: on the CPU it replays the allocations that `torch.profiler`
records, on CUDA it reads the caching allocator's counter. The resident size of the process answers neither,
because allocators keep the memory they are given back.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fxapprox import torch_adapter as adapter

T = TypeVar("T")


@dataclass(frozen=True)
class Peak(Generic[T]):
    """What one call did to the memory of its device.

    Attributes:
        result: what the call returned.
        peak: largest number of bytes in use at once during the call, above those in use when it began.
        kept: bytes allocated during the call and still in use at its end (gradients, for a training step).
    """

    result: T
    peak: int
    kept: int


def stored_bytes(outputs: object, exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that the autograd graph of `outputs` holds for backward.

    Call it between forward and backward. Every storage is counted once and in full, however many views of it
    are saved. A user output that backward reads is counted like any other tensor, although the caller keeps
    it alive anyway. Tensors packed by `torch.autograd.graph.saved_tensors_hooks` are counted as packed; what
    such a hook keeps outside of tensors (on disk, say) is not seen.

    Args:
        outputs: a tensor, or lists, tuples and dicts of tensors; those without a graph hold nothing.
        exclude: tensors that are alive anyway and are left out: parameters, buffers, inputs.

    Returns:
        The number of bytes, on all devices together.

    Raises:
        RuntimeError: backward has run, and PyTorch has freed the tensors.
    """
    sizes = {_storage_key(t): t.untyped_storage().nbytes() for t in adapter.saved_tensors(outputs)}
    for tensor in exclude:
        sizes.pop(_storage_key(tensor), None)
    return sum(sizes.values())


def peak_bytes(step: Callable[[], T], device: torch.device | str = "cpu") -> Peak[T]:
    """Run `step` once and measure how far the memory in use rises.

    Compile first: the first call of a compiled model also counts what tracing and autotuning allocate. Free
    old gradients first, too (`zero_grad(set_to_none=True)`): memory allocated before the call and released by
    it lowers the level on CUDA, but on the CPU the profiler does not know such memory and says so in a
    warning.

    Args:
        step: a function without arguments, such as one training step.
        device: the device whose memory is measured, "cpu" or a CUDA device.

    Raises:
        ValueError: for any other device.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _peak_on_cpu(step)
    if device.type == "cuda":
        return _peak_on_cuda(step, device)
    raise ValueError(f"peak_bytes measures memory on 'cpu' and 'cuda', not on {device.type!r}")


def _storage_key(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _peak_on_cuda(step: Callable[[], T], device: torch.device) -> Peak[T]:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return Peak(result, peak, torch.cuda.memory_allocated(device) - before)


def _peak_on_cpu(step: Callable[[], T]) -> Peak[T]:
    # Read when the profiler is first used; without it, every use writes two lines to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with ExitStack() as stack:
        with warnings.catch_warnings():
            # torch 2.11 recommends acc_events, with which the profiler spends seconds on statistics that nobody reads
            warnings.filterwarnings("ignore", ".*acc_events")
            profiler = stack.enter_context(profile(activities=[ProfilerActivity.CPU], profile_memory=True))
        result = step()
    return Peak(result, *_replay(_cpu_memory_events(profiler)))


def _cpu_memory_events(profiler: profile) -> list[tuple[int, int]]:
    """(address, bytes) of every CPU allocation (positive) and release (negative), in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    events = [e for e in trace["traceEvents"] if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    events.sort(key=lambda e: (e["ts"], e["args"]["Ev Idx"]))
    return [(e["args"]["Addr"], e["args"]["Bytes"]) for e in events]


def _replay(events: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The highest and the last number of bytes in use, counting only blocks allocated among the events."""
    live: dict[int, int] = {}
    level = peak = 0
    for address, size in events:
        level -= live.pop(address, 0)
        if size > 0:
            live[address] = size
            level += size
            peak = max(peak, level)
    return peak, level
