"""What a training run is, and the files of a directory of runs.

recipe.json for the directory; MODE-seedN.json, the record of a run, and MODE-seedN.pt, its checkpoint. Files are
written as a whole or not at all.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tools.harness import ResultsError, read_json, write_atomically, write_text

PAPER_ITERATIONS = 64_000
PAPER_RATES = ((400, 0.1), (32_000, 1.0), (48_000, 0.1), (64_000, 0.01))  # until this iteration, times --lr
MODES = ("plain", "exact", "8", "4", "2")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run, mode and seed aside."""

    depth: int
    block: Literal["basic", "bottleneck"]
    epochs: int
    batch: int
    limit: int | None
    learning_rate: float
    momentum: float
    weight_decay: float
    lowering: str

    def rate(self, progress: float) -> float:
        """The learning rate after this fraction of all iterations, 0 to less than 1."""
        iteration = progress * PAPER_ITERATIONS
        return self.learning_rate * next(factor for until, factor in PAPER_RATES if iteration < until)


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean cross-entropies, accuracies as fractions, the last learning rate, training time."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float


@dataclass
class Run:
    """One mode and seed.

    Attributes:
        mode: one of `MODES`.
        seed: decides weights and batches.
        recipe: shared by all runs.
        stored_bytes: held for backward in the first step.
        epochs: what is done.
    """

    mode: str
    seed: int
    recipe: Recipe
    stored_bytes: int = 0
    epochs: list[Epoch] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.mode}-seed{self.seed}"

    @property
    def finished(self) -> bool:
        return len(self.epochs) >= self.recipe.epochs


def claim(out: Path, recipe: Recipe) -> None:
    """Creates the output directory, or checks that its runs follow the same recipe."""
    out.mkdir(parents=True, exist_ok=True)
    path, wanted = out / "recipe.json", asdict(recipe)
    if not path.exists():
        return write_text(path, json.dumps(wanted, indent=1))
    found = read_json(path)
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        differences = "; ".join(f"{key} {found.get(key)}, not {wanted[key]}" for key in changed)
        raise ResultsError(f"{out} holds runs with {differences}: choose another --out")


def save(run: Run, network: nn.Module, optimizer: torch.optim.Optimizer, out: Path) -> None:
    """Checkpoint and JSON file of a run."""
    state = {"run": asdict(run), "network": network.state_dict(), "optimizer": optimizer.state_dict()}
    write_atomically(out / f"{run.name}.pt", lambda path: torch.save(state, path))
    write_text(out / f"{run.name}.json", as_json(run))


def restore(run: Run, network: nn.Module, optimizer: torch.optim.Optimizer, out: Path) -> None:
    """Continues a run from its checkpoint; without one it starts anew, whatever its JSON file says."""
    path = out / f"{run.name}.pt"
    run.epochs, run.stored_bytes = [], 0
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # load_state_dict moves it to the device
    except Exception as error:  # it has no common base class
        raise ResultsError(f"{path}: damaged ({error}); delete it to start this run again") from error
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    adopt(run, state["run"])
    save(run, network, optimizer, out)


def recorded_runs(out: Path, recipe: Recipe) -> list[Run]:
    """All runs in the directory, as far as their JSON files say."""
    names = sorted(path.stem.split("-seed") for path in out.glob("*-seed*.json"))
    return [recorded(Run(mode, int(seed), recipe), out) for mode, seed in names]


def recorded(run: Run, out: Path) -> Run:
    """The run, with what its JSON file says is done."""
    path = out / f"{run.name}.json"
    if path.exists():
        try:
            adopt(run, read_json(path))
        except (KeyError, TypeError) as error:
            raise ResultsError(f"{path}: not the record of a run ({error!r}); delete it and run again") from error
    return run


def adopt(run: Run, record: dict[str, Any]) -> None:
    """Takes over stored bytes and epochs of a record, where None is a number that was not finite."""
    run.stored_bytes = record["stored_bytes"]
    run.epochs = [Epoch(**with_nan(epoch)) for epoch in record["epochs"]]


def with_nan(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch's record with nan for None."""
    return {key: math.nan if value is None else value for key, value in epoch.items()}


def as_json(run: Run) -> str:
    """A run as JSON, with null for numbers that are not finite."""
    record = asdict(run)
    record["epochs"] = [with_none(epoch) for epoch in record["epochs"]]
    return json.dumps(record, indent=1, allow_nan=False)


def with_none(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch's record with None for what is not finite."""
    return {key: value if math.isfinite(value) else None for key, value in epoch.items()}
