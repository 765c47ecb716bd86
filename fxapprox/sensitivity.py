"""How much each stored value moves the gradients, by the number of bits that it is stored in.

``calibrate`` measures it; ``bits="auto"`` reads it. Errors are squared and relative: ||g' - g||^2 / ||g||^2 over all
parameters' gradients, where g' is the gradient with this one value decoded from its code and all others exact. Errors
of different values are nearly independent, so their sum predicts the error of a whole plan (it is what ActNN, Chen et
al. 2021, equation 4, and GACT, Liu et al. 2022, section 4, add up).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxapprox import json_file

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
        json_file.write(path, SCHEMA, {"sensitivities": graphs})

    @classmethod
    def load(cls, path: str | Path) -> Sensitivities:
        """Reads them from a JSON file.

        Raises:
            FxApproxError: there is no such file, or it is not one that ``save`` wrote.
        """

        def parse(content: Any) -> Sensitivities:
            return cls(tuple(
                {name: {int(bits): float(e) for bits, e in at.items()} for name, at in graph.items()}
                for graph in content["sensitivities"]
            ))  # fmt: skip

        return json_file.read(path, SCHEMA, parse, what="sensitivities", writer="Sensitivities.save")
