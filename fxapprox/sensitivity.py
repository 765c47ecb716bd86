"""How much each stored value moves the gradients, by the number of bits that it is stored in.

``calibrate`` measures it; ``bits="auto"`` reads it. Errors are squared and relative: ||g' - g||^2 / ||g||^2 over all
parameters' gradients, where g' is the gradient with this one value decoded from its code and all others exact. Errors
of different values are nearly independent, so their sum predicts the error of a whole plan (it is what ActNN, Chen et
al. 2021, equation 4, and GACT, Liu et al. 2022, section 4, add up).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fxapprox.errors import FxApproxError

SCHEMA = 1

Errors = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Sensitivities:
    """Measured errors of the values that a model stores.

    Attributes:
        graphs: for each training graph, in the order of compilation: {value: {bits: squared relative error}}.
    """

    graphs: tuple[Errors, ...]

    def of(self, names: Iterable[str]) -> Errors | None:
        """The errors of the graph in which all these values were measured; None if there is none."""
        wanted = set(names)
        return next((graph for graph in self.graphs if wanted <= graph.keys()), None)

    def save(self, path: str | Path) -> None:
        """Writes them to a JSON file."""
        graphs = [
            {name: {str(bits): e for bits, e in at.items()} for name, at in graph.items()} for graph in self.graphs
        ]
        text = json.dumps({"schema": SCHEMA, "torch": torch.__version__, "sensitivities": graphs}, indent=1)
        Path(path).write_text(text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Sensitivities:
        """Reads them from a JSON file.

        Raises:
            FxApproxError: there is no such file, or it is not one that ``save`` wrote.
        """
        try:
            content = json.loads(Path(path).read_text())
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']}, this version reads {SCHEMA}")
            graphs = [
                {name: {int(bits): float(e) for bits, e in at.items()} for name, at in graph.items()}
                for graph in content["sensitivities"]
            ]
        except OSError as error:
            raise FxApproxError(f"cannot read sensitivities: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FxApproxError(f"{path} holds no sensitivities that Sensitivities.save wrote: {error}") from None
        return cls(tuple(graphs))
