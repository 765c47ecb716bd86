"""Plans and graphs as short text for golden files: values renumbered, no names that torch made up."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from fxapprox.ir.operators import op_name
from fxapprox.ir.records import Activation, Decision
from fxapprox.ir.tensors import tensor_of

DTYPES = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16", "uint8": "u8", "int32": "i32"}


def decisions_dump(decisions: tuple[Decision, ...]) -> str:
    """One line for each stored value: what it is, its class, how it is stored, its bytes, and why."""
    lines = []
    for d in decisions:
        shape = ", ".join(map(str, d.shape))
        kind = d.kind.value + (f" {d.reach.value}" if d.reach else "")
        operator = re.sub(r"_\d+$", "", d.value)
        where = f" in {d.module}" if d.module else ""
        size = f"{d.bytes_before} -> {d.bytes_after}"
        lines.append(f"{operator} {short(d.dtype)}[{shape}]{where}: {kind}; {d.storage}; {size}; {reason(d)}")
    return "\n".join(lines) + "\n"


def storage_dump(decisions: tuple[Decision, ...]) -> str:
    """One line for each class of value and way to store it: how many there are, and their bytes in all."""
    found: dict[tuple[str, str], list[int]] = {}
    for d in decisions:
        storage = re.sub(r"in the code of .*", "in a code", d.storage)
        found.setdefault((d.kind.value, storage), []).append(d.bytes_after)
    return "".join(f"{kind}; {how}: {len(sizes)}, {sum(sizes)}\n" for (kind, how), sizes in sorted(found.items()))


def reason(decision: Decision) -> str:
    """The reason, without names of other values."""
    return re.sub(r"_\d+\b", "", decision.reason)


def activations_dump(activations: tuple[Activation, ...]) -> str:
    """One line for each forward value: operator, class, whether it may be recomputed or approximated, and why."""
    lines = []
    for a in activations:
        traits = [
            word
            for word, holds in (
                ("recomputable", a.recomputable),
                ("approximable", a.approximable),
                ("carried", a.embedded is not None),
                ("nonnegative", a.nonnegative),
            )
            if holds
        ]
        kind = a.kind.value + (f" {a.reach.value}" if a.reach else "")
        lines.append(f"{a.op}: {kind}; {', '.join(traits) or '-'}; {a.reason}")
    return "\n".join(lines) + "\n"


def graph_dump(gm: fx.GraphModule) -> str:
    """A graph, one line a node: ``%3 f32[8, 4] = aten.mm(%0, %1)``."""
    numbers = {node: f"%{i}" for i, node in enumerate(gm.graph.nodes)}
    lines = []
    for node in gm.graph.nodes:
        if node.op == "output":
            lines.append(f"return {argument(node.args[0], numbers)}")
            continue
        value = tensor_of(node)
        kind = "" if value is None else f" {short(str(value.dtype))}[{', '.join(map(str, value.shape))}]"
        if node.op == "call_function":
            kept = [argument(a, numbers) for a in node.args]
            kept += [f"{k}={argument(a, numbers)}" for k, a in node.kwargs.items() if k not in ("device", "layout")]
            lines.append(f"{numbers[node]}{kind} = {op_name(node)}({', '.join(kept)})")
        else:
            lines.append(f"{numbers[node]}{kind} = {'tangent' if 'tangent' in node.name else 'input'}")
    return "\n".join(lines) + "\n"


def argument(value: Any, numbers: dict[fx.Node, str]) -> str:
    """One argument of a node."""
    if isinstance(value, fx.Node):
        return numbers[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(argument(v, numbers) for v in value)}]"
    if isinstance(value, torch.dtype):
        return short(str(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def short(dtype: str) -> str:
    """A dtype's short name."""
    name = dtype.removeprefix("torch.")
    return DTYPES.get(name, name)
