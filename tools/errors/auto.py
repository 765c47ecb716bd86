"""What bits="auto" is worth: gradient error, stored bytes and average bits beside uniform bits, as markdown tables.

Errors are relative, over all parameters, of one step at initialization, run eagerly, against the exact partition; the
bytes are the plan's. Bits are an average over the elements of what is stored with loss, scales aside. "All in 4 bits"
overrules what classes need, by a policy: bits=4 gives attention 8. "Measured" is calibrated on a batch of other
inputs; its predicted error is the square root of the sum of what was measured there for each value alone.

Examples:

    python -m tools.errors auto
    python -m tools.errors auto --models gpt-2,vit --average 4,5
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

import fxapprox
from fxapprox import Activation, Report, Sensitivities
from fxapprox.amounts import size_text
from fxapprox.codecs import Codec, Zero
from tools.harness import head, select
from tools.zoo import models
from tools.zoo.models import Case
from tools.zoo.models.benchmarks import resnet_50, vit
from tools.zoo.training import relative, step, unrewritten

CASES: dict[str, Callable[[], Case]] = {
    "ResNet-50, max-pool stem, 64x64": resnet_50,
    "GPT-2 shape, 4 layers, width 128, sequence 64": lambda: models.gpt2(layers=4, width=128, sequence=64),
    "ViT, 4 layers, width 192": vit,
}
HEAD = "how bits are chosen|gradient error|predicted|stored|bits an element"
OPTION_BITS, LEVELS = (8, 4, 2), (8, 4, 3, 2)


@dataclass(frozen=True)
class Row:
    """What one way to choose bits comes to.

    Attributes:
        label: how they are chosen.
        error: of the gradients, relative.
        stored: bytes.
        bits: average over the elements of what is stored with loss.
        predicted: the error that the measurements add up to, if there are any.
    """

    label: str
    error: float
    stored: int
    bits: float
    predicted: float | None = None

    def __str__(self) -> str:
        predicted = "" if self.predicted is None else f"{self.predicted:.2%}"
        return f"| {self.label} | {self.error:.2%} | {predicted} | {size_text(self.stored)} | {self.bits:.2f} |"


def all_in(bits: int) -> Callable[[Activation], Codec]:
    """A policy: every value in so many bits, whatever its class needs, in the codec that the plan would take.

    Only a rectifier's output fits the zero codec; of what does not fit the plan takes the bits alone.
    """
    return lambda value: Zero(bits)


def predicted(report: Report, sensitivities: Sensitivities) -> float | None:
    """The error that independent errors of all values add up to; None if they were measured in other graphs."""
    total = 0.0
    for graph in report.graphs or (report,):
        bits = {d.value: d.bits for d in graph.decisions if d.bits is not None}
        errors = sensitivities.of(bits)
        if errors is None:
            return None
        total += sum(errors[name][chosen] for name, chosen in bits.items())
    return math.sqrt(total)


def parse_averages(text: str) -> list[float]:
    """Numbers from 2 to 8, separated by commas.

    Raises:
        typer.BadParameter: something else.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(2 <= average <= 8 for average in found):
        raise typer.BadParameter(f"{text!r}: expected numbers from 2 to 8, separated by commas")
    return found


def ways(averages: list[float], measured: Sensitivities) -> dict[str, dict[str, Any]]:
    """{label: options}: for each average, uniform bits where there are such codes, then what "auto" makes of it."""
    found: dict[str, dict[str, Any]] = {}
    for average in averages:
        if average in OPTION_BITS:
            found[f"bits={average:g}"] = {"bits": int(average)}
        if average in LEVELS:
            found[f"all in {average:g} bits"] = {"policy": all_in(int(average))}
        auto = {"bits": "auto", "average_bits": average}
        found[f"auto, average {average:g}, no batch"] = auto
        found[f"auto, average {average:g}, measured"] = {**auto, "sensitivities": measured}
    return found


def rows(case: Case, averages: list[float]) -> list[Row]:
    """A row for each way."""
    torch.compiler.reset()
    _, exact = step(case, unrewritten(case.model))
    torch.compiler.reset()
    measured = fxapprox.calibrate(case.model, case.loss, others(case.args))
    tried = track(ways(averages, measured).items(), case.name, console=Console(stderr=True))
    return [row(label, case, exact, options) for label, options in tried]


def others(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs of the same shapes: images drawn again, tokens in another order."""
    return tuple(
        torch.randn_like(x) if x.is_floating_point() else x.flatten()[torch.randperm(x.numel())].view_as(x)
        for x in inputs
    )


def row(label: str, case: Case, exact: Tensor, options: dict[str, Any]) -> Row:
    """One step with these options."""
    torch.compiler.reset()
    run = fxapprox.compile(case.model, lowering="eager", strict=True, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "average_bits=.* cannot be had")  # the last column says what came of it
        _, found = step(case, run)
    (report,) = fxapprox.reports(run)
    sensitivities = options.get("sensitivities")
    return Row(
        label,
        relative(found, exact),
        report.saved_bytes,
        report.average_bits or math.nan,
        predicted(report, sensitivities) if sensitivities is not None else None,
    )


def main(
    only: Annotated[str, typer.Option("--models", help="comma-separated parts of names")] = "",
    average: Annotated[str, typer.Option(help="comma-separated averages, 2 to 8")] = "4,3",
) -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    averages = parse_averages(average)
    for name in select(CASES, only):
        torch.manual_seed(0)
        found = rows(CASES[name](), averages)
        print(f"{name}\n\n{head(*HEAD.split('|'))}")
        print("\n".join(map(str, found)) + "\n")
