"""How long each codec encodes and decodes, beside what plain torch.compile does with the value, as a markdown table.

Encoding: in times that a copy of the value takes (read it, write a new one), which is what storing it exactly costs.
Decoding: a gradient times the decoded value (of a decision: the gradient where it holds) in times that the same takes
with the exact value. All are compiled as they are in a training step, and those of one codec run in turns, on one
thread; a cell is the median of the ratios in a turn, with the quartiles. In a step an encoder is fused with what makes
the value.

Examples:

    python -m tools.profile codecs
    python -m tools.profile codecs --codecs group --bits 4 --rounds 100
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor

from fxapprox import torch_adapter as adapter
from fxapprox.codecs import Context, Group, Like, Mask, Predicate, Standard, Threshold, Zero
from tools.harness import head, line, select

ROWS = (8192, 256)  # of a transformer: 8 MiB
IMAGES = (64, 32, 32, 32)  # 8 MiB as well
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A codec, and a value for it.

    Attributes:
        value: what is stored.
        encode: from the value, and others that lie in memory, to the parts.
        decode: from the parts to the value; a carrier's with its decision.
        decides: whether a decision is all that is decoded.
        others: what else the encoder reads.
    """

    value: Tensor
    encode: Callable[..., tuple[Tensor, ...]]
    decode: Callable[[tuple[Tensor, ...]], Any]
    decides: bool = False
    others: tuple[Tensor, ...] = ()


def group(bits: int) -> Case:
    """Rows, each with its own range."""
    x, codec = torch.randn(ROWS), Group(bits)
    return Case(x, codec.encode, lambda parts: codec.decode(parts, Like.of(x)))


def softmax(bits: int) -> Case:
    """Rows that add up to one."""
    x, codec = torch.randn(ROWS).softmax(1), Group(bits, skewed=True)
    return Case(x, codec.encode, lambda parts: codec.decode(parts, Like.of(x)))


def zero(bits: int) -> Case:
    """Rows of a rectifier's output."""
    x, codec = torch.randn(ROWS).relu(), Zero(bits)
    return Case(
        x,
        lambda x: codec.encode(x, Context(Predicate(x > 0))),
        lambda parts: codec.decode_with(parts, Like.of(x)),
    )


def threshold(bits: int) -> Case:
    """Images before a BatchNorm and its rectifier, whose output is there, by the BatchNorm's statistics."""
    x, codec = torch.randn(IMAGES), Threshold(bits)
    mean, rstd = _statistics(x)
    scale, shift = torch.rand_like(mean) + 0.5, 0.3 * torch.randn_like(mean)
    rectified = ((x - mean) * rstd * scale + shift).relu()

    def encode(x: Tensor, rectified: Tensor) -> tuple[Tensor, ...]:
        return codec.encode(x, Context(Predicate(rectified > 0, scale, shift), mean, rstd))

    return Case(x, encode, lambda parts: codec.decode_with(parts, Like.of(x)), others=(rectified,))


def standard(bits: int) -> Case:
    """Images before a BatchNorm alone."""
    x, codec = torch.randn(IMAGES), Standard(bits)
    mean, rstd = _statistics(x)
    return Case(
        x, lambda x: codec.encode(x, Context(mean=mean, rstd=rstd)), lambda parts: codec.decode(parts, Like.of(x))
    )


def mask(bits: int) -> Case:
    """A decision, made from the value that it is taken on."""
    x, codec = torch.randn(ROWS), Mask()
    return Case(x, lambda x: codec.encode(x > 0), lambda parts: codec.decode(parts, Like.of(x > 0)), decides=True)


CODECS: dict[str, tuple[Callable[[int], Case], tuple[int, ...]]] = {
    "group": (group, (8, 4, 2)),
    "group, skewed": (softmax, (8,)),
    "zero": (zero, (8, 4, 2)),
    "threshold": (threshold, (8, 4, 2)),
    "standard": (standard, (8, 4, 2)),
    "mask": (mask, (1,)),
}


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return mean, torch.rsqrt(var)


def runs(case: Case) -> list[Run]:
    """A copy, the encoder, the reader of the exact value, and the reader of the decoded one."""
    x, grad = case.value, torch.randn(case.value.shape)

    def copied(x: Tensor) -> tuple[Tensor, ...]:
        return (x.clone(),)

    def read(grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.where(x > 0, grad, 0) if case.decides else grad * x,)

    def decoded(grad: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        value = case.decode(parts)
        if isinstance(value, tuple):  # a carrier's
            value, upper = value
            grad = torch.where(upper, grad, 0)
        return (torch.where(value, grad, 0) if case.decides else grad * value,)

    encode, parts = _compiled(case.encode, (x, *case.others), "forward")
    copy, _ = _compiled(copied, (x,), "forward")
    exact, _ = _compiled(read, (grad, x), "backward")
    decode, _ = _compiled(decoded, (grad, *parts), "backward")
    return [copy, encode, exact, decode]


def _compiled(fn: Callable[..., Any], values: Sequence[Tensor], half: adapter.Half) -> tuple[Run, tuple[Tensor, ...]]:
    """The function of these values, compiled as it is in our graphs, and what it gives."""
    compiled = adapter.compile_function(fn, values, half)
    return lambda: compiled(*values), compiled(*values)


def measured(runs: Sequence[Run], rounds: int) -> list[list[float]]:
    """Seconds of each, which run in turns."""
    for run in runs:
        run()
    return [[_seconds(run) for run in runs] for _ in range(rounds)]


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(ratios: Sequence[float]) -> str:
    """The median, and the quartiles."""
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({lower:.2f} to {upper:.2f})"


def row(name: str, bits: int, rounds: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    turns = measured(runs(CODECS[name][0](bits)), rounds)
    encoding = spread([encode / copy for copy, encode, _, _ in turns])
    decoding = spread([decoded / exact for _, _, exact, decoded in turns])
    return line(name, f"{bits}", encoding, decoding)


def main(
    codecs: Annotated[str, typer.Option(help="comma-separated parts of names")] = "",
    bits: Annotated[int, typer.Option(help="8, 4, 2 or 1; 0 for all")] = 0,
    rounds: Annotated[int, typer.Option(min=3, help="turns")] = 50,
) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    todo = [(name, each) for name in select(CODECS, codecs) for each in CODECS[name][1] if bits in (0, each)]
    if not todo:
        raise typer.BadParameter(f"no codec matching {codecs!r} has {bits} bits", param_hint="--bits")
    lines = [row(name, each, rounds) for name, each in track(todo, "codecs", transient=True)]
    print("\n".join([head("codec", "bits", "encode", "decode"), *lines]))
