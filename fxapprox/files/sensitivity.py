"""How much each stored value moves the gradients, by the number of bits that it is stored in.

``calibrate`` measures it; ``bits="auto"`` reads it. Errors are squared and relative: ||g' - g||^2 / ||g||^2 over all
parameters' gradients, where g' is the gradient with this one value decoded from its code and all others exact. Errors
of different values are nearly independent, so their sum predicts the error of a whole plan (it is what ActNN, Chen et
al. 2021, equation 4, and GACT, Liu et al. 2022, section 4, add up).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from fxapprox.bits import CODES
from fxapprox.errors import FxApproxError, shown
from fxapprox.files import json_file, typed

SCHEMA = 1

Errors = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Sensitivities:
    """Measured errors of the values that a model stores.

    Attributes:
        graphs: for each training graph, in the order of compilation: {value: {bits: squared relative error}}.

    Raises:
        FxApproxError: a name is none, a number of bits is not 8, 4, 3 or 2, or an error is negative or not finite.
    """

    graphs: tuple[Errors, ...]

    def __post_init__(self) -> None:
        _require(isinstance(self.graphs, tuple), "graphs", self.graphs, "a tuple of mappings")
        for i, graph in enumerate(self.graphs):
            _require(isinstance(graph, Mapping), f"graphs[{i}]", graph, "a mapping from values to errors")
            for name, errors in graph.items():
                at = f"graphs[{i}][{shown(name)}]"
                _require(isinstance(name, str) and bool(name), at, name, "the name of a value")
                _require(isinstance(errors, Mapping) and bool(errors), at, errors, "an error for each number of bits")
                for bits, error in errors.items():
                    _require(type(bits) is int and bits in CODES, at, bits, "bits: 8, 4, 3 or 2")
                    ok = isinstance(error, Real) and not isinstance(error, bool) and 0 <= error < math.inf
                    _require(ok, f"{at}[{bits}]", error, "a squared error, 0 or more, and finite")

    def of(self, names: Iterable[str]) -> Errors | None:
        """The errors of the graph in which all these values were measured; None if there is none."""
        wanted = set(names)
        return next((graph for graph in self.graphs if wanted <= graph.keys()), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them to a JSON file, as a whole or not at all.

        Raises:
            FxApproxError: the file cannot be written.
        """
        graphs = [
            {name: {str(bits): float(e) for bits, e in at.items()} for name, at in graph.items()}
            for graph in self.graphs
        ]
        json_file.write(path, SCHEMA, "sensitivities", graphs)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivities:
        """Reads them from a JSON file.

        Raises:
            FxApproxError: there is no such file, or it is not one that ``save`` wrote.
        """

        def parse(content: Any) -> Sensitivities:
            graphs = typed.read(tuple[Mapping[str, Mapping[str, float]], ...], content, "sensitivities")
            return cls(
                tuple({v: {_bits(b, v): e for b, e in at.items()} for v, at in graph.items()} for graph in graphs)
            )

        return json_file.read(path, SCHEMA, "sensitivities", parse, what="sensitivities", writer="Sensitivities.save")


def _bits(name: str, value: str) -> int:
    """The number of bits that a name in a file is."""
    _require(name in map(str, CODES), shown(value), name, "bits: 8, 4, 3 or 2")
    return int(name)


def _require(ok: bool, place: str, value: object, expected: str) -> None:
    if not ok:
        raise FxApproxError(f"{place}: {shown(value)} where there should be {expected}")
