"""The process that one system runs in: ``python -m fxapprox.bench.worker TARGET SYSTEM DEVICE SEED``.

It reads requests from standard input and answers each with a line of JSON on what was standard output when it began;
what the model or a compiler prints goes to standard error. See ``Worker`` in ``run`` for the other side.
"""

from __future__ import annotations

import copy
import gc
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fxapprox import torch_adapter as adapter
from fxapprox.bench.systems import SYSTEMS
from fxapprox.errors import FxApproxError
from fxapprox.frontend.target import Target, load
from fxapprox.measure.memory import peak_bytes, stored_bytes


class Trial:
    """A target in a system.

    Args:
        spec: the target.
        system: its name; "float64": the model as it is, in double precision.
        device: where the model and its inputs go.
        seed: of the weights, and of the random numbers of each measured step.
    """

    def __init__(self, spec: str, system: str, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.seed, self.device = seed, torch.device(device)
        self.target = moved(load(spec), self.device, torch.float64 if system == "float64" else None)
        self.trained = list(trained(self.target))
        if not self.trained:
            raise FxApproxError(f"{spec}: no parameter and no input needs a gradient")
        prepare = SYSTEMS["eager" if system == "float64" else system].prepare
        if SYSTEMS.get(system, SYSTEMS["eager"]).compiled:
            _warm_up(self.device)
        self.run, self._context = prepare(self.target)

    def __enter__(self) -> Trial:
        self._stack = ExitStack()
        self._stack.enter_context(self._context)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def loss(self) -> Tensor:
        """Forward, with the measured step's random numbers and no gradients left."""
        for tensor in self.trained:
            tensor.grad = None
        torch.manual_seed(self.seed)
        return self.run(*self.target.args)

    def step(self) -> None:
        """Forward and backward."""
        self.loss().backward()

    def gradients(self) -> Tensor:
        """All of them in one vector, in double precision on the CPU; zeros where there is none."""
        found = (torch.zeros_like(t) if t.grad is None else t.grad for t in self.trained)
        return torch.cat([g.detach().flatten().to("cpu", torch.float64) for g in found])

    # Requests ------------------------------------------------------------------------------------

    def first(self, save: str = "", against: str = "") -> dict[str, Any]:
        """The first step, which compiles: its time, its loss, and its gradients' distance from those in a file."""
        start, busy = time.perf_counter(), time.process_time()
        loss = self.loss()
        loss.backward()
        self._finish()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        own = self.gradients()
        if save:
            torch.save(own, save)
        error = None
        if against:
            exact = torch.load(against, weights_only=True)
            error = float((own - exact).norm() / exact.norm())
        return {
            "compile_seconds": seconds, "compile_cpu_seconds": busy,
            "loss": float(loss.detach()).hex(), "gradient_error": error,
        }  # fmt: skip

    def random(self) -> dict[str, Any]:
        """Whether the loss depends on the seed."""
        with torch.no_grad():
            losses = [self.loss().item()]
            self.seed += 1
            losses.append(self.loss().item())
        self.seed -= 1
        return {"random": losses[0] != losses[1]}

    def memory(self) -> dict[str, Any]:
        """Stored bytes, bytes alive after forward, and the real peak."""
        loss = self.loss()
        stored = stored_bytes(loss, exclude=alive_anyway(self.target))
        loss.backward()
        del loss
        gc.collect()
        forward = peak_bytes(self.loss, self.device)
        forward.result.backward()
        alive = forward.kept
        del forward
        gc.collect()
        for tensor in self.trained:
            tensor.grad = None
        return {"stored_bytes": stored, "alive_bytes": alive, "peak_bytes": peak_bytes(self.step, self.device).peak}

    def resident(self) -> dict[str, Any]:
        """Bytes of parameters, buffers, inputs and the loss's own tensors."""
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive_anyway(self.target)}
        return {"bytes": sum(sizes.values())}

    def timed(self) -> dict[str, Any]:
        """The time of a step that follows another one, as in training; other processes have run before that one."""
        self.run(*self.target.args).backward()
        for tensor in self.trained:
            tensor.grad = None
        if self.device.type == "cuda":
            return {"seconds": self._timed_on_cuda()}
        start = time.perf_counter()
        self.run(*self.target.args).backward()
        return {"seconds": time.perf_counter() - start}

    def _timed_on_cuda(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.run(*self.target.args).backward()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def moved(target: Target, device: torch.device, dtype: torch.dtype | None) -> Target:
    """The target on a device, its floats in another type if one is given; the loss's own tensors too."""

    def move(value: Tensor) -> Tensor:
        found = value.detach().to(device, dtype if value.is_floating_point() else None)
        return found.requires_grad_(value.requires_grad)

    if device.type == "cpu" and dtype is None:
        return target
    model = target.model
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).to(device, dtype)
    args = adapter.map_tensors(move, target.args)
    loss = target.loss
    if inspect.isfunction(loss) and loss.__closure__:
        for cell in loss.__closure__:
            cell.cell_contents = adapter.map_tensors(move, cell.cell_contents)
    return Target(model, args, loss, target.name)


def trained(target: Target) -> Iterator[Tensor]:
    """What gradients are for."""
    parameters = target.model.parameters() if isinstance(target.model, nn.Module) else ()
    yield from (tensor for tensor in (*parameters, *adapter.tensors_in(target.args)) if tensor.requires_grad)


def alive_anyway(target: Target) -> list[Tensor]:
    """Parameters, buffers, inputs and the loss's own tensors, which no system stores for backward."""
    model, loss = target.model, target.loss
    own = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    closed = inspect.getclosurevars(loss).nonlocals.values() if inspect.isfunction(loss) else ()
    return [*own, *adapter.tensors_in((*target.args, *closed))]


def _warm_up(device: torch.device) -> None:
    """Starts compiler processes and compiles headers, which is nobody's own time."""
    x = torch.ones(64, device=device, requires_grad=True)
    torch.compile(lambda x: (x.sin() * 2).sum(), dynamic=False)(x).backward()


def answer(trial: Trial, line: str) -> dict[str, Any]:
    """What a request gives; a failure is an answer too."""
    request = json.loads(line)
    do: Callable[..., dict[str, Any]] = getattr(trial, request.pop("do"))
    try:
        return do(**request)
    except Exception as error:  # whatever a model or a compiler raises
        return {"failed": in_a_line(error)}


def in_a_line(error: Exception) -> str:
    """The kind of an error, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def main(spec: str, system: str, device: str, seed: str) -> None:
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # C++ prints there, too

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    try:
        trial = Trial(spec, system, device, int(seed))
    except Exception as error:  # as above
        return say({"failed": in_a_line(error)})
    say({})
    with trial:
        for line in sys.stdin:
            say(answer(trial, line))


if __name__ == "__main__":
    main(*sys.argv[1:])
