"""Writes what the zoo's models are rewritten to, so that a diff of two runs shows what a change of the code changes.

Each model is planned in each setting. A file MODEL/LOWERING-BITS.txt has the plan and the pairs of graphs as they go to
the lowering; nothing is compiled or run. hashes.txt has a line for each file.

    python -m tools.replay before --models demo_resnet,squeezebert
    git switch other
    python -m tools.replay after --models demo_resnet,squeezebert
    diff -r before after
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import fx
from torch.fx.node import map_arg

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.frontend.target import Target
from fxapprox.ir.joint import Joint
from fxapprox.passes.rewrite import for_inductor
from tools.zoo.names import builder, chosen
from tools.zoo.rows import BITS, LOWERINGS, Setting, settings
from tools.zoo.subject import our_options


def text_of(setting: Setting) -> str:
    """The plan of a model, and its graphs; or why there are none."""
    torch.compiler.reset()
    case = builder(setting.model)()
    try:
        step = Target(case.model, (), case.loss).step
        report = fxapprox.explain(step, *case.args, lowering=setting.lowering, **our_options(setting))
    except Exception as error:
        return f"{type(error).__name__}: {error}\n"
    plan = {name: value for name, value in json.loads(report.to_json()).items() if name != "seconds"}
    parts = [json.dumps(plan, indent=1)]
    for number, graph in enumerate(report.graphs or (report,)):
        parts += [f"\ngraph {number}, {half}\n{graph_text(gm)}" for half, gm in halves(graph, setting.lowering)]
    return "\n".join(parts)


def halves(report: fxapprox.Report, lowering: str) -> Iterator[tuple[str, fx.GraphModule]]:
    """Forward and backward as the lowering gets them."""
    assert report.joint is not None
    assert report.forward is not None
    assert report.backward is not None
    pair = report.forward, report.backward
    if lowering == "inductor":
        pair = for_inductor(Joint(report.joint, report.outputs), pair, report.spliced, report.slices)
    yield from zip(("forward", "backward"), pair, strict=True)


def graph_text(gm: fx.GraphModule, indent: str = "") -> str:
    """One line for each node, values numbered in the order of the graph; functions stand indented at its end."""
    numbers = {node: f"%{i}" for i, node in enumerate(gm.graph.nodes)}
    lines = []
    for node in gm.graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: _Name(numbers[n]))
        given = ", ".join([*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())])
        lines.append(f"{indent}{numbers[node]} {_kind(node.meta.get('val'))} = {_target(node)}({given})")
    for name, function in gm.named_children():
        lines.append(f"{indent}{name}:")
        lines.append(graph_text(function, indent + "    ") if isinstance(function, fx.GraphModule) else str(function))
    return "\n".join(lines)


class _Name(str):
    """The number of a node, without quotes within lists."""

    __repr__ = str.__str__


def _target(node: fx.Node) -> str:
    if node.op == "call_function":
        return str(node.target) if adapter.is_operator(node.target) else node.target.__name__  # type: ignore[union-attr]
    return node.op if node.op == "output" else f"{node.op} {node.target}"


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype}{[*value.shape]} strides {[*value.stride()]} on {value.device}"
    return f"({', '.join(map(_kind, value))})" if isinstance(value, (tuple, list)) else type(value).__name__


def main(
    out: Annotated[Path, typer.Argument(help="a folder that is not there yet")],
    models: Annotated[str, typer.Option(help="comma-separated parts of names; all if empty")] = "",
    bits: Annotated[str, typer.Option(help=f"of {','.join(BITS)}")] = ",".join(BITS),
) -> None:
    """Writes the files."""
    out.mkdir(parents=True)
    wanted = settings(
        chosen(models), lowerings=LOWERINGS, precisions=["fp32"], batches=["static"], bits=bits.split(",")
    )
    hashes = []
    warnings.simplefilter("ignore")
    for setting in track(wanted, "rewriting"):
        text = text_of(setting)
        path = out / setting.model / f"{setting.lowering}-{setting.bits}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        hashes.append(f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {path.relative_to(out)}\n")
    (out / "hashes.txt").write_text("".join(hashes), encoding="utf-8")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    typer.run(main)
