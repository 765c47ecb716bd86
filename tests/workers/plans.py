"""Prints a fingerprint of what models store under several options, and of their graphs."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import torch

import fxapprox
from tools.zoo.models import MODELS

CASES: tuple[tuple[str, dict[str, int], dict[str, Any]], ...] = (
    ("gpt", {"layers": 2, "width": 32, "sequence": 32}, {"bits": "auto", "checkpoint": 2, "checkpoint_bits": 8}),
    ("gpt", {"layers": 2, "width": 32, "sequence": 32}, {"memory_budget": 0.9}),
    ("demo_resnet", {"batch": 2, "width": 4}, {"bits": 4}),
)


def fingerprint(name: str, sizes: dict[str, int], options: dict[str, Any]) -> str:
    torch._dynamo.reset()
    case = MODELS[name](**sizes)
    report = fxapprox.explain(lambda *args: case.loss(case.model(*args)), *case.args, **options)
    document = {key: value for key, value in json.loads(report.to_json()).items() if key != "seconds"}
    graphs = [str(half.graph) for each in report.graphs or (report,) for half in (each.forward, each.backward) if half]
    return hashlib.sha256("\n".join([json.dumps(document), *graphs]).encode()).hexdigest()[:16]


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # an average that cannot be had is no news here
    for name, sizes, options in CASES:
        print(name, options, fingerprint(name, sizes, options))
