"""Questions about a node's operator, answered from the table (``operator_table.py``), and teaching it another row."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import OptionError
from fxapprox.ir.arguments import argument
from fxapprox.ir.operator_table import TABLE, UNKNOWN, Kind, Operator
from fxapprox.ir.records import Use

LINEAR_REDUCTIONS = (None, "sum", "add", "mean")  # of those into places that indices name
WORDS = {use.name.lower(): use for use in (Use.SHAPE, Use.LINEAR, Use.SMOOTH, Use.SENSITIVE, Use.DECISION)}

# Rows of operators that the user has described; part of the key of compiled graphs in caches.
TAUGHT: dict[str, Operator] = {}


def teach(operator: str, *uses: str, cheap: bool = False) -> None:
    """Describes an operator that fxapprox does not know, for every model that is compiled from then on.

    Until then each of its operands is stored exactly if backward reads it, and its result is never recomputed. A
    description that is wrong makes gradients wrong: ``fxapprox.audit`` shows how far they are off.

    Args:
        operator: its name, "mylib::op"; all overloads are meant.
        uses: how the result depends on each argument, in the schema's order; the last one holds for the rest. "shape":
            its elements are not read; "linear": linear or affine in it; "smooth": its derivative is bounded, about 1 or
            less; "sensitive": it has to be exact; "decision": it is only compared, or an index.
        cheap: backward may run it again: about as fast as an addition, without random numbers and effects.

    Raises:
        OptionError: there is no such operator, it writes to an argument, fxapprox knows it already, or a use is none of
            these.
    """
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None) if namespace and name else None
    if packet is None:
        raise OptionError(f'teach: there is no operator {operator!r}; expected "namespace::name" of a registered one')
    known = str(packet)
    row = TABLE.get(known, UNKNOWN)
    if row.uses is not None:
        raise OptionError(f"teach: fxapprox knows {operator!r} already")
    if any(getattr(packet, overload)._schema.is_mutable for overload in packet.overloads()):
        raise OptionError(f"teach: {operator!r} writes to an argument")
    wrong = [use for use in uses if use not in WORDS]
    if wrong or not uses:
        given = repr(wrong[0]) if wrong else "no uses"
        raise OptionError(f"teach: {given} for {operator!r}; expected one or more of {', '.join(WORDS)}")
    TAUGHT[known] = replace(row, uses=tuple(WORDS[use] for use in uses), cheap=cheap)


def op_name(node: fx.Node) -> str:
    """Name of the operator packet, e.g. "aten.mul"; for other targets a readable name."""
    if adapter.written_to(node) is not None:  # torch puts one operator in place of all that write to their operands
        return _target_name(node.args[0])  # type: ignore[arg-type]
    return _target_name(node.target) if node.op == "call_function" else node.op


@cache
def _target_name(target: Any) -> str:
    if adapter.is_operator(target):
        return str(target.overloadpacket)
    return "getitem" if target is operator.getitem else getattr(target, "__name__", str(target))


def operator_of(node: fx.Node) -> Operator:
    """The row of the node's operator; an empty one for an operator that has none."""
    name = op_name(node)
    return TAUGHT.get(name) or TABLE.get(name, UNKNOWN)


def kind_of(node: fx.Node) -> Kind | None:
    """What sort the node's operator is of."""
    return operator_of(node).kind


def is_known(node: fx.Node) -> bool:
    """Whether somebody has said how the operator depends on its operands."""
    return operator_of(node).uses is not None


def uses_of(node: fx.Node) -> tuple[Use, ...]:
    """The uses in the operator's row, whatever its other arguments say; unknown operands have to be exact."""
    return operator_of(node).uses or (Use.SENSITIVE,)


def is_cheap(node: fx.Node) -> bool:
    """Whether backward may run the operator again: it is pointwise, a view or a copy."""
    return operator_of(node).cheap


def is_view(node: fx.Node) -> bool:
    """Whether the result shares memory with its first operand."""
    return operator_of(node).view


def is_reduction(node: fx.Node) -> bool:
    """Whether the operator makes one number, or a few, of many elements."""
    return kind_of(node) is Kind.REDUCTION


def is_contraction(node: fx.Node) -> bool:
    """Whether the operator sums products: of matrices, or a convolution."""
    return kind_of(node) is Kind.CONTRACTION


def is_exponential(node: fx.Node) -> bool:
    """Whether the operator is an exponential."""
    return kind_of(node) is Kind.EXPONENTIAL


def behind_views(node: fx.Node, through: Callable[[fx.Node], bool] = is_view) -> fx.Node:
    """The value that the node is a view of, itself if it is none; one of several results is such a value.

    Args:
        through: what else counts as a view.
    """
    while through(node) and op_name(node) != "getitem":
        node = argument(node, 0)
    return node


def is_pointwise(node: fx.Node) -> bool:
    """Whether torch says of the operator that each element of its result is made of one element of each operand."""
    return adapter.is_operator(node.target) and torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_label(node: fx.Node) -> bool:
    """Whether a float result is a decision: a sign or a whole number, by where its operand lies."""
    return kind_of(node) is Kind.LABEL or _rounds(node)


def is_plain(node: fx.Node) -> bool:
    """Whether arithmetic on two operands is that alone: neither is scaled, and nothing is rounded."""
    return argument(node, "alpha", 1) == 1 and not _rounds(node)


def _rounds(node: fx.Node) -> bool:
    """Whether the node divides and drops the remainder."""
    return op_name(node) == "aten.div" and argument(node, "rounding_mode") is not None


def is_random(node: fx.Node) -> bool:
    """Whether running the operator twice gives two results; random numbers of a seed are the same each time."""
    dropout = argument(node, "dropout_p")
    if dropout is not None:  # fused attention: random with dropout only
        return dropout != 0
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def table_use(node: fx.Node, position: int) -> Use | None:
    """How the node depends on its operand at ``position``, from the table alone; None if it is unknown."""
    row = operator_of(node)
    if _rounds(node):
        return Use.DECISION
    if row.chooses_reduction and argument(node, "reduce") not in LINEAR_REDUCTIONS:
        return Use.SENSITIVE
    result = row.read_for.get(position)
    if result is not None and not argument(node, "output_mask")[result]:
        return Use.SHAPE
    return None if row.uses is None else row.uses[min(position, len(row.uses) - 1)]
