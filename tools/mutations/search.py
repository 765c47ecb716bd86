"""Documents and options with something changed, tried: see the command."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox import FxApproxError, Options, SavedPlan, Sensitivities
from fxapprox.amounts import UNITS
from fxapprox.options import ENVIRONMENT, from_environment, parse
from tools.mutations.changes import mutated_document, mutated_text, mutated_value

KINDS = ("plan", "sensitivities", "options", "environment", "command line")
LEAST_COSINE = 0.5  # between gradients in 2 bits and exact ones


class Misread(Exception):
    """Something was taken for another thing than it says."""


@dataclass
class Found:
    """What came out.

    Attributes:
        counts: {(kind, "refused", "accepted", "ran" or "refused when compiled"): how many}.
        failures: what went wrong: an exception that is not ours, or something misread.
        accepted: (kind, options that it gives), for compiling.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    accepted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Net(nn.Module):
    """One of each: a code with a decision, one without, masks, indices, a softmax, what is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = F.gelu(self.first(x.flatten(1)))
        return F.cross_entropy(self.second(x), target)


def net() -> tuple[Net, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return Net(), (torch.randn(8, 3, 8, 8), torch.arange(8))


@cache
def seeds() -> dict[str, list[Any]]:
    """What is valid, and is changed."""
    model, batch = net()
    report = fxapprox.explain(model, *batch, bits=4, min_bytes=0)
    measured = Sensitivities(tuple(
        {entry.value: {8: 1e-6, 4: 1e-3, 3: 0.01, 2: 0.5} for entry in graph} for graph in report.plan.graphs
    ))  # fmt: skip
    options: list[Any] = [
        {"bits": 4, "min_bytes": 0, "rounding": "stochastic", "strict": True},
        {"bits": "auto", "average_bits": 3.5, "min_bytes": 0, "lowering": "eager"},
        {"bits": {"conv": 8, "fir*": None, "*": 2}, "min_bytes": 0},
        {"checkpoint": "sqrt", "checkpoint_bits": 8, "min_bytes": 0, "bits": None},
        {"checkpoint": 0.5, "bits": 2, "min_bytes": 1}, {"checkpoint": 2, "bits": 8},
        {"memory_budget": 0.9, "min_bytes": 0}, {"memory_budget": "1.5MiB", "bits": None},
    ]  # fmt: skip
    lines: list[Any] = [
        {"bits": "4", "min_bytes": "0"}, {"bits": "conv=8,fir*=exact,*=2"}, {"bits": "auto", "average_bits": "3.5"},
        {"checkpoint": "sqrt", "checkpoint_bits": "8"}, {"checkpoint": "0.5", "bits": "exact"}, {"checkpoint": "2"},
        {"memory_budget": "0.9"}, {"memory_budget": "1.5MiB", "bits": "exact"}, {"size": "64"},
        {"size": "s77=64,s12=128"},
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.json"
        report.plan.save(path)
        plan = json.loads(path.read_text())
        measured.save(path)
        sensitivities = json.loads(path.read_text())
    return {
        "plan": [plan], "sensitivities": [sensitivities], "options": options, "environment": options,
        "command line": lines,
    }  # fmt: skip


def tried(kind: str, rng: Random, folder: Path) -> dict[str, Any]:
    """The options that one changed example gives.

    Raises:
        FxApproxError: it was refused.
        Misread: it was taken for something else.
    """
    seed = rng.choice(seeds()[kind])
    if kind in ("plan", "sensitivities"):
        return _document(kind, mutated_document(rng, seed), folder)
    if kind == "options":
        given = mutated_value(rng, seed)
        return _same(given, Options.parse(given))
    if kind == "environment":
        return _environment(mutated_document(rng, seed))
    return _command_line({name: mutated_text(rng, text) if rng.random() < 0.7 else text for name, text in seed.items()})


def _document(kind: str, data: bytes, folder: Path) -> dict[str, Any]:
    path, again = folder / "given.json", folder / "again.json"
    path.write_bytes(data)
    loaded: SavedPlan | Sensitivities = (SavedPlan if kind == "plan" else Sensitivities).load(path)
    loaded.save(again)
    if _pairs(data) != _pairs(again.read_bytes()):
        raise Misread(f"{kind}: {data!r}")
    return {"min_bytes": 0, **({"plan": loaded} if kind == "plan" else {"bits": "auto", "sensitivities": loaded})}


def _environment(data: bytes) -> dict[str, Any]:
    text = data.replace(b"\0", b" ").decode(errors="surrogateescape")  # as os.environ has what is no UTF-8
    os.environ[ENVIRONMENT] = text
    try:
        options = from_environment()
    finally:
        del os.environ[ENVIRONMENT]
    if not text.strip():
        return {}
    pairs = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    if len(dict(pairs)) < len(pairs):
        raise Misread(f"environment: {text!r}")
    return _same(json.loads(text), options)


def _same(given: Any, options: Options) -> dict[str, Any]:
    """What was given, if the options say so."""
    for name, value in given.items():
        if _typed(getattr(options, name)) != _typed(value):
            raise Misread(f"{name}={value!r} was taken for {getattr(options, name)!r}")
    return dict(given)


def _command_line(texts: dict[str, str]) -> dict[str, Any]:
    parsers: dict[str, Callable[[str], Any]] = {
        "bits": parse.parse_bits, "checkpoint": parse.parse_checkpoint, "checkpoint_bits": parse.parse_checkpoint_bits,
        "memory_budget": parse.parse_budget, "size": parse.parse_size, "average_bits": _number(float),
        "min_bytes": _number(int),
    }  # fmt: skip
    given = {name: parsers[name](text) for name, text in texts.items()}
    given = {name: value for name, value in given.items() if value != ""}
    sizes = given.pop("size", None)
    options = Options.parse(given)
    for name, text in texts.items():
        value = sizes if name == "size" else getattr(options, name)
        if not _says(name, text.strip(), value):
            raise Misread(f"--{name} {text!r} was taken for {value!r}")
    return given


def _number(kind: type) -> Callable[[str], Any]:
    """As typer reads a number."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise FxApproxError(f"{text!r} is no number") from None

    return parse


def _says(name: str, text: str, value: Any) -> bool:
    """Whether the text of an option on the command line says this value."""
    if isinstance(value, dict):
        said = [tuple(map(str.strip, pair.rpartition("="))) for pair in text.split(",")]
        return [(key, "exact" if number is None else number) for key, number in value.items()] == [
            (key, number if number == "exact" else int(number)) for key, _, number in said
        ]
    if value is None:
        return text in ("", "exact")
    if isinstance(value, str) and name == "memory_budget":
        number, unit = re.fullmatch(r"([0-9.]+) *([a-z]*)", text.lower()).groups()  # type: ignore[union-attr]
        return 1 <= Fraction(number) * UNITS[unit] < 2**63 and text == value.strip()
    return value == text or float(text) == value


def _pairs(data: bytes) -> Any:
    """A document with the types of its values, names in order, repeated ones included; torch's version left out."""

    def pairs(found: list[tuple[str, Any]]) -> Any:
        return "object", *sorted((name, _typed(value)) for name, value in found if name != "torch")

    return json.loads(data, object_pairs_hook=pairs)


def _typed(value: Any) -> Any:
    """A value that equals no value of another type, but for numbers; objects by their items in order."""
    if isinstance(value, dict):
        return [(name, _typed(item)) for name, item in value.items()]
    if isinstance(value, list):
        return list(map(_typed, value))
    return ("number", value) if type(value) in (int, float) else (type(value).__name__, value)


# --- the run ---------------------------------------------------------------------------------------


def attempt(found: Found, kind: str, rng: Random, folder: Path) -> None:
    """Tries one example, and notes what came of it."""
    try:
        given = tried(kind, rng, folder)
    except FxApproxError as error:
        found.counts[kind, "refused"] += 1
        if not str(error).isprintable():
            found.failures.append(f"{kind}: a message that cannot be printed: {error!r}")
        return
    except Exception:
        found.failures.append(f"{kind}: {traceback.format_exc(limit=-4)[-2000:]}")
        return
    found.counts[kind, "accepted"] += 1
    found.accepted.append((kind, given))


def step(**options: Any) -> tuple[Tensor, Tensor]:
    """(loss, all gradients) of one step."""
    model, batch = net()
    torch.compiler.reset()
    given: dict[str, Any] = {**options, "lowering": "eager"}
    loss = fxapprox.compile(model, **given)(*batch)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run(found: Found, kind: str, given: dict[str, Any], exact: tuple[Tensor, Tensor]) -> None:
    """Compiles and runs what was accepted."""
    try:
        loss, gradients = step(**given)
    except FxApproxError:
        found.counts[kind, "refused when compiled"] += 1
        return
    except Exception:
        found.failures.append(f"{kind}, compiled: {given!r}: {traceback.format_exc(limit=-4)[-2000:]}")
        return
    found.counts[kind, "ran"] += 1
    cosine = float(F.cosine_similarity(gradients, exact[1], dim=0))
    if not torch.equal(loss, exact[0]) or not cosine > LEAST_COSINE or not math.isfinite(float(gradients.sum())):
        found.failures.append(f"{kind}, compiled: {given!r}: loss {loss} for {exact[0]}, cosine {cosine}")


def search(examples: int, runs: int, seed: int) -> Iterator[Found]:
    """Tries so many examples, then compiles so many of those that were accepted; what was found, after each."""
    rng, found = Random(seed), Found()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        for i in range(examples):
            attempt(found, KINDS[i % len(KINDS)], rng, Path(folder))
            yield found
        exact = step(bits=None)
        by_kind = {kind: [given for name, given in found.accepted if name == kind] for kind in KINDS}
        for i in range(runs):
            kind = KINDS[i % len(KINDS)]
            run(found, kind, rng.choice(by_kind[kind]), exact)
            yield found
