"""What does backward read, and what does each value need?

Every forward value of the joint graph gets a class by following it to backward along the operators that backward
could run again: a value is as delicate as the strictest ``Use`` on the way. The rules are in ``operators.py``; what
an operator does to an operand can also depend on the operand (``exp`` of something that is never positive is
bounded), so a small interval analysis (``intervals.py``) runs first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.activation import CLASS_OF_USE, Activation, Affine, Clamp, Class, Moments, Operand, Reach, Use
from fxapprox.codecs.threshold import kept_dims
from fxapprox.graph import (
    Joint,
    element_of,
    is_dense,
    module_path,
    nbytes,
    numel,
    operands,
    source_line,
    storage_of,
    symbolic_shape,
    tensor_of,
)
from fxapprox.intervals import EVERYTHING, Interval, interval
from fxapprox.operators import (
    DISCRETE_FLOATS,
    INDEX_MAKERS,
    REDUCTIONS,
    is_random,
    is_view,
    op_name,
    rule_of,
    table_use,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDE = 8  # times larger than its operand
CLAMPS = {"aten.clamp_min": True, "aten.clamp_max": False}  # whether what lies above the limit passes
JOINED = ("aten.bitwise_or", "aten.bitwise_and", "aten.logical_or", "aten.logical_and", "aten.__or__", "aten.__and__")
COMPARISONS = {"aten.gt": True, "aten.ge": True, "aten.le": False, "aten.lt": False}


def classify(joint: Joint, *, min_bytes: int) -> tuple[Activation, ...]:
    """Describes every forward value of a joint graph.

    Requires: a prepared joint graph (dead code removed, common subexpressions merged).
    Ensures: one Activation per forward node, in graph order; an unknown operator makes its operands sensitive.
    Changes numerics: no.
    """
    facts = _Facts.of(joint)
    clamps = {node: clamp for node in joint.forward_values if (clamp := _clamp(node, joint)) is not None}
    affines = {node: _embedding(node, joint, facts) for node in joint.forward_values if node not in clamps}
    uses = _uses_by_backward(joint, facts, affines, clamps)
    reaches = _reaches(joint, facts)
    predicates = _predicates_by_operand(joint, facts)
    return tuple(
        _describe(node, joint, facts, uses, reaches, predicates, affines.get(node), clamps.get(node), min_bytes)
        for node in joint.forward_values
    )


# --- facts that hold forward: ranges, dependence, where values come from -------------------------


@dataclass(frozen=True)
class _Facts:
    """What is known of each forward node before anything is asked of it.

    Attributes:
        bounds: the interval that its elements lie in.
        depends: whether training moves it: it depends on a parameter or a float input.
        roots: which values, not cheap to compute, it is made of.
        free: it is alive during backward anyway.
        statistics: it is small next to the activations it came from.
        again: backward may run its operator again.
    """

    bounds: dict[fx.Node, Interval]
    depends: set[fx.Node]
    roots: dict[fx.Node, frozenset[fx.Node]]
    free: set[fx.Node]
    statistics: set[fx.Node]
    again: set[fx.Node]

    @classmethod
    def of(cls, joint: Joint) -> _Facts:
        returned = {n for n in joint.outputs[0] if isinstance(n, fx.Node) and n not in joint.backward}
        facts = cls({}, set(), {}, set(), set(), set())
        for node in joint.forward_values:
            value = tensor_of(node)
            sources = node.all_input_nodes
            if (
                node.op in ("placeholder", "get_attr")
                or node in returned
                or (is_view(node) and sources and node.args[0] in facts.free and value is not None)
            ):
                facts.free.add(node)
            is_float = value is not None and value.dtype.is_floating_point
            if (node.op == "placeholder" and is_float) or any(s in facts.depends for s in sources):
                facts.depends.add(node)
            facts.bounds[node] = interval(node, facts.bounds)
            facts.roots[node] = _roots(node, facts, sources)
            if value is not None and is_float and _is_statistic(node, value, facts):
                facts.statistics.add(node)
            if _may_run_again(node, facts):
                facts.again.add(node)
        return facts


def _may_run_again(node: fx.Node, facts: _Facts) -> bool:
    """Whether backward may run the operator again: it is cheap or a wide projection, or the user checkpoints it."""
    rule = rule_of(node)
    return (rule is not None and rule.cheap) or _is_wide_projection(node, facts) or adapter.must_recompute(node)


def _is_wide_projection(node: fx.Node, facts: _Facts) -> bool:
    """Whether a product with a parameter is many times larger than what it is made from: logits over a vocabulary.

    One more product costs less than keeping them, even in 8 bits (fewer than which a softmax does not get).
    """
    value = tensor_of(node)
    if op_name(node) not in ("aten.mm", "aten.addmm") or value is None:
        return False
    moving = [tensor_of(source) for source in node.all_input_nodes if source not in facts.free]
    return bool(moving) and all(inner is not None and WIDE * numel(inner) <= numel(value) for inner in moving)


def _roots(node: fx.Node, facts: _Facts, sources: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """The values, not cheap to compute, that a chain of cheap operators made this from; at most three."""
    if node in facts.free or node not in facts.depends:
        return frozenset()
    rule = rule_of(node)
    if rule is None or not rule.cheap:
        return frozenset((node,))
    value = tensor_of(node)
    size = 0 if value is None else numel(value)
    merged: set[fx.Node] = set()
    for source in sources:
        inner = tensor_of(source)
        if inner is None or (size and numel(inner) * 4 <= size):
            continue  # statistics and parameters ride along
        merged |= facts.roots[source]
    return frozenset(sorted(merged, key=lambda n: n.name)[:3])


def _is_statistic(node: fx.Node, value: torch.Tensor, facts: _Facts) -> bool:
    """Whether the node is a small reduction of an activation, or is computed from such alone (rstd from variance)."""
    maker = node.args[0] if op_name(node) == "getitem" and isinstance(node.args[0], fx.Node) else node
    if op_name(maker) in REDUCTIONS and isinstance(maker.args[0], fx.Node):
        source = tensor_of(maker.args[0])
        return source is not None and numel(value) * 4 <= numel(source)
    rule = rule_of(node)
    moving = [source for source in node.all_input_nodes if source in facts.depends]
    made_of = [tensor_of(source) for source in moving if source in facts.statistics]
    if rule is None or not rule.cheap or not made_of or len(made_of) < len(moving):
        return False
    return numel(value) <= max(numel(t) for t in made_of if t is not None)


# --- how backward reads each value ---------------------------------------------------------------


def operand_use(node: fx.Node, position: int, operand: fx.Node, facts: _Facts) -> Use:
    """How ``node`` depends on ``operand``: the table, refined by what is known of the operand."""
    value = element_of(operand)
    if value is None or not value.dtype.is_floating_point:
        return Use.DECISION if value is not None else Use.SENSITIVE
    if adapter.must_recompute(node):
        return Use.SENSITIVE  # a region that the user checkpoints is computed again exactly, decisions included
    use = table_use(node, position)
    if use is None:
        return Use.SENSITIVE
    name = op_name(node)
    low, high = facts.bounds.get(operand, EVERYTHING)
    if name in ("aten.mul", "prims.fma", "aten.addcmul"):
        return Use.SMOOTH if _multiplies_activations(node, operand, facts) else Use.LINEAR
    if name == "aten.div" and position == 1:
        return Use.SMOOTH if low >= 1 or high <= -1 else Use.SENSITIVE
    if name in ("aten.log", "aten.sqrt", "aten.rsqrt", "aten.reciprocal"):
        return Use.SMOOTH if low >= 1 else Use.SENSITIVE
    if name == "aten.log1p":
        return Use.SMOOTH if low >= 0 else Use.SENSITIVE
    if name in ("aten.pow", "aten.square"):
        power = 2 if name == "aten.square" else node.args[1]
        return Use.LINEAR if power == 1 else Use.SMOOTH if power in (2, 3) else Use.SENSITIVE
    if name == "aten.exp":
        return _exp_use(node, operand, high)
    return use


def _multiplies_activations(node: fx.Node, operand: fx.Node, facts: _Facts) -> bool:
    """Whether the product has another factor that is as large and as approximate as this one."""
    value = tensor_of(operand)
    others = [n for n in node.all_input_nodes if n is not operand]
    if not others:
        return True
    return any(
        other in facts.depends and other not in facts.free and other in facts.roots
        and (inner := tensor_of(other)) is not None and value is not None and numel(inner) == numel(value)
        for other in others
    )  # fmt: skip


def _exp_use(node: fx.Node, operand: fx.Node, high: float) -> Use:
    if high <= 0:
        return Use.SOFTMAX if op_name(operand) == "aten.sub" else Use.SMOOTH
    # exp(x) that only ever meets the world as 1 + exp(x) below a fraction bar, or in log1p: a sigmoid or softplus.
    for user in node.users:
        if op_name(user) == "aten.log1p":
            continue
        shifted = op_name(user) == "aten.add" and any(isinstance(a, (int, float)) and a >= 1 for a in user.args)
        if not shifted or not all(op_name(u) == "aten.div" and u.args[1] is user and u.args[0] is not user
                                  for u in user.users):  # fmt: skip
            return Use.SENSITIVE
    return Use.SMOOTH


def _is_softmax_output(node: fx.Node, facts: _Facts) -> bool:
    """Whether the node is a softmax, or exp(x - max) on the way to one."""
    if _is_weights(node):
        return True
    name = op_name(node)
    if name == "aten.div" and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        name = op_name(node)
    if name != "aten.exp" or not isinstance(node.args[0], fx.Node):
        return False
    return op_name(node.args[0]) == "aten.sub" and facts.bounds[node.args[0]][1] <= 0


def _is_weights(node: fx.Node) -> bool:
    """Whether the node is a softmax: exp(...) over its own sum, whatever was subtracted or multiplied before."""
    if op_name(node) == "aten._softmax":
        return True
    if op_name(node) != "aten.div" or not all(isinstance(a, fx.Node) for a in node.args):
        return False
    exponential, total = node.args
    return op_name(exponential) == "aten.exp" and op_name(total) == "aten.sum" and total.args[0] is exponential  # type: ignore[union-attr, arg-type]


def _uses_by_backward(
    joint: Joint, facts: _Facts, affines: Mapping[fx.Node, Affine | None], clamps: Mapping[fx.Node, Clamp]
) -> dict[fx.Node, tuple[Use | None, Use | None, str]]:
    """Per forward node: the strictest use by backward's own operators, the strictest use in all, and its reason."""
    gradients = {n for n in joint.outputs[1] if isinstance(n, fx.Node)}
    found: dict[fx.Node, tuple[Use | None, Use | None, str]] = {}
    for node in reversed(list(joint.forward_values)):
        demand: Use | None = Use.DECISION if node in gradients else None
        every, why = demand, "it is itself a gradient" if demand is not None else ""
        strict: tuple[Use, str] | None = None
        for user in node.users:
            own = user in joint.backward
            if user.op != "call_function" or not (own or (user in facts.again and found[user][1] is not None)):
                continue
            use = max(operand_use(user, position, n, facts) for position, n in operands(user) if n is node)
            if user in clamps or (affines.get(user) is not None and _rectified(user) is node):
                use = Use.LINEAR  # the decision can ride in a code; the plan insists on exactness where it does not
            known = table_use(user, 0) is not None
            if not own and adapter.must_recompute(user):
                strict = (use, "a checkpointed region is computed again from it")
                continue
            text = f"{use.name.lower()} in {op_name(user)}" if known else f"unknown operator {op_name(user)}"
            if own:
                demand = use if demand is None else max(demand, use)
            elif use >= Use.SENSITIVE:
                strict = (use, text)  # only an exact copy serves this user; an approximate one may serve the others
                continue
            else:
                downstream = found[user][1]
                if downstream is not None and use < downstream < Use.SENSITIVE:
                    use, text = downstream, found[user][2]
            if every is None or use > every:
                every, why = use, text
        if every is None and strict is not None:
            every, why = strict
        if every is not None and every < Use.SOFTMAX and _is_softmax_output(node, facts):
            every, why = Use.SOFTMAX, "output of a softmax"
        found[node] = (demand, every, why)
    return found


def _reaches(joint: Joint, facts: _Facts) -> dict[fx.Node, Reach]:
    """Per forward node that backward reads: does an error in it end in one gradient or in many?"""
    gradients = {n: i for i, n in enumerate(joint.outputs[1]) if isinstance(n, fx.Node)}
    many = -1
    ends: dict[fx.Node, int | None] = {}
    for node in reversed(list(joint.gm.graph.nodes)):
        mine = {gradients[node]} if node in gradients else set()
        for user in node.users:
            if user in joint.backward or user in facts.again:
                mine |= {end for end in (ends.get(user),) if end is not None}
        ends[node] = None if not mine else many if len(mine) > 1 else mine.pop()
    return {
        node: Reach.CHAIN if ends[node] == many else Reach.TERMINAL
        for node in joint.forward_values if ends.get(node) is not None
    }  # fmt: skip


# --- decisions -----------------------------------------------------------------------------------


def _is_decision(node: fx.Node, facts: _Facts) -> bool:
    """Whether the node is a branch taken on a float that training moves: a mask, an index, a sign."""
    value = tensor_of(node)
    if value is None or node.op != "call_function" or is_view(node):
        return False
    if value.dtype.is_floating_point:
        return op_name(node) in DISCRETE_FLOATS
    return any(
        source in facts.depends and (inner := tensor_of(source)) is not None and inner.dtype.is_floating_point
        for source in node.all_input_nodes
    )


def _predicates_by_operand(joint: Joint, facts: _Facts) -> dict[fx.Node, list[str]]:
    found: dict[fx.Node, list[str]] = {}
    for node in joint.forward_values:
        if _is_decision(node, facts) and any(user in joint.backward for user in node.users):
            for source in node.all_input_nodes:
                found.setdefault(source, []).append(node.name)
    return found


def _rectified(node: fx.Node) -> fx.Node | None:
    """z, if the node is max(z, 0)."""
    if op_name(node) == "aten.relu" or (op_name(node) == "aten.clamp_min" and node.args[1] == 0):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def _embedding(node: fx.Node, joint: Joint, facts: _Facts) -> Affine | None:
    """How one code can carry this decision together with a value that backward needs anyway.

    The decision is ``z > threshold`` (or its negation, or the rectifier itself) with z affine per channel in x.
    """
    if _rectified(node) is not None:
        rectifier, threshold, upper = node, 0.0, True
    elif op_name(node) in COMPARISONS and isinstance(node.args[0], fx.Node) and isinstance(node.args[1], (int, float)):
        rectifier, threshold, upper = node.args[0], float(node.args[1]), COMPARISONS[op_name(node)]
    else:
        return None
    z = rectifier
    if threshold == 0 and (inner := _rectified(rectifier)) is not None and op_name(node) not in ("aten.ge", "aten.lt"):
        z = inner
    chain, steps = _affine_chain(z, facts)
    if any(adapter.must_recompute(n) for n in (node, *chain)):
        return None  # nothing inside a checkpointed region is stored
    inside = {*chain, rectifier, node}
    needed = any(_read_by_backward(user, joint) for n in chain for user in n.users if user not in inside)
    if not needed and z is not rectifier:
        return Affine(rectifier.name, (), 0.0, upper)  # only max(z, 0) is needed: the zero codec
    root = chain[-1]
    if root in facts.free or root not in facts.depends:
        return None
    mean, rstd = _statistics(root, steps)
    named = ((name, c.name if isinstance(c, fx.Node) else c) for name, c in reversed(steps))
    return Affine(root.name, tuple(named), threshold, upper, mean, rstd)


def _clamp(node: fx.Node, joint: Joint) -> Clamp | None:
    """How the node can be run again from an approximate operand, if it is a clamp whose decision backward reads.

    Backward of hardswish and hardsigmoid asks where y <= -3 and y < 3; forward clamps y + 3 to 0 and 6. Both decide
    alike, to the last bit: rounding y + 3 is monotone, and whole numbers are not rounded.
    """
    operand = node.args[0] if node.args else None
    if op_name(node) not in CLAMPS or not isinstance(operand, fx.Node) or not _is_whole(node.args[1]):
        return None
    limit: float = node.args[1]  # type: ignore[assignment]
    y, threshold = operand, limit
    while isinstance(y, fx.Node) and _is_whole(threshold):
        for user in y.users:
            decides = op_name(user) in COMPARISONS and user.args[0] is y and user.args[1] == threshold
            if decides and user not in joint.backward and _is_read_as_mask(user, joint):
                if any(adapter.must_recompute(n) for n in (node, user)):
                    return None
                return Clamp(operand.name, user.name, COMPARISONS[op_name(user)] == CLAMPS[op_name(node)], limit)
        if op_name(y) == "aten.add" and not y.kwargs and _is_whole(y.args[1]):
            y, threshold = y.args[0], threshold - y.args[1]  # type: ignore[operator,assignment]
        elif op_name(y) in CLAMPS and CLAMPS[op_name(y)] != CLAMPS[op_name(node)] and _wraps(node, y) and y is operand:
            y = y.args[0]  # type: ignore[assignment]
        else:
            return None
    return None


def _is_read_as_mask(predicate: fx.Node, joint: Joint) -> bool:
    """Whether backward reads the decision, itself or joined to another (both limits of relu6 and hardtanh)."""
    readers = [reader for user in predicate.users for reader in (user.users if op_name(user) in JOINED else (user,))]
    return any(reader in joint.backward for reader in readers)


def _is_whole(number: object) -> bool:
    """Whether the number is exact in every floating point type."""
    return isinstance(number, (int, float)) and abs(number) <= 64 and number == int(number)


def _wraps(outer: fx.Node, inner: fx.Node) -> bool:
    """Whether two clamps leave an interval open between their limits."""
    lower, upper = (outer, inner) if CLAMPS[op_name(outer)] else (inner, outer)
    return _is_whole(inner.args[1]) and lower.args[1] <= upper.args[1]  # type: ignore[operator]


def _affine_chain(z: fx.Node, facts: _Facts) -> tuple[list[fx.Node], list[tuple]]:
    """z and the values it is an affine function of, with the steps from z back to the last of them."""
    chain, steps = [z], []
    while True:
        step = _affine_step(chain[-1], facts)
        if step is None:
            return chain, steps
        steps.append(step[1:])
        chain.append(step[0])


def _affine_step(node: fx.Node, facts: _Facts) -> tuple | None:
    """(operand, operator, coefficient) if the node is operand op coefficient, the coefficient one per channel."""
    name = op_name(node).removeprefix("aten.")
    if node.op != "call_function" or name not in ("add", "sub", "mul", "div", "neg") or node.kwargs.get("alpha"):
        return None
    if node in facts.free or not facts.roots[node]:
        return None
    value = tensor_of(node)
    large = [a for a in node.args if isinstance(a, fx.Node) and (t := tensor_of(a)) is not None
             and value is not None and numel(t) == numel(value) and a not in facts.free and facts.roots[a]]  # fmt: skip
    if len(large) != 1 or tensor_of(large[0]).dtype != value.dtype or tensor_of(large[0]).shape != value.shape:  # type: ignore[union-attr]
        return None
    if name == "neg":
        return large[0], "neg", 0.0
    position = node.args.index(large[0])
    other = node.args[1 - position]
    if isinstance(other, fx.Node):
        small = tensor_of(other)
        if small is None or small.dim() > value.dim() or numel(small) * 8 > numel(value):  # type: ignore[union-attr]
            return None
    if position == 1 and name == "div":
        return None
    return large[0], "rsub" if name == "sub" and position == 1 else name, other


def _read_by_backward(node: fx.Node, joint: Joint) -> bool:
    """Whether backward reads the node, itself or through cheap operators."""
    stack, seen = [node], set()
    while stack:
        user = stack.pop()
        if user in joint.backward:
            return True
        if user in seen:
            continue
        seen.add(user)
        rule = rule_of(user)
        if rule is not None and rule.cheap:
            stack.extend(user.users)
    return False


def _statistics(root: fx.Node, steps: list[tuple]) -> tuple[str | None, str | None]:
    """Names of mean and rstd, if the first two steps normalize the root by its own statistics."""
    if len(steps) < 2 or steps[-1][0] != "sub" or steps[-2][0] != "mul":
        return None, None
    mean, rstd = steps[-1][1], steps[-2][1]
    if not isinstance(mean, fx.Node) or not isinstance(rstd, fx.Node):
        return None, None
    scale = _strip_views(rstd)
    if not _is_mean_of(root, mean) or scale is None or op_name(scale) != "aten.rsqrt":
        return None, None
    return mean.name, rstd.name


def _is_mean_of(x: fx.Node, mean: fx.Node) -> bool:
    """Whether the mean is that of a var_mean of x."""
    source = _strip_views(mean)
    made = source.args[0] if source is not None and op_name(source) == "getitem" else None
    return isinstance(made, fx.Node) and op_name(made) == "aten.var_mean" and made.args[0] is x


def _moments(node: fx.Node) -> Moments | None:
    """How the statistics of a normalization over the batch standardize the value: its input, or that less its mean.

    Each channel then has a scale of its own, so that a channel of outliers does no harm to others. A row of a LayerNorm
    has all channels in it, outliers as well, and a group of a GroupNorm many: the group codec follows those better.
    """
    found = _normalization(node)
    if found is not None:
        return Moments(*found)
    if op_name(node) != "aten.sub" or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    x, mean = node.args
    found = _normalization(x)  # type: ignore[arg-type]
    if found is None or not _is_mean_of(x, mean) or tensor_of(node).shape != tensor_of(x).shape:  # type: ignore[union-attr, arg-type]
        return None
    return Moments(None, found[1])


def _normalization(x: fx.Node) -> tuple[str, str] | None:
    """Names of the (mean, rstd) over the batch, of each channel, by which x is normalized."""
    for centred in x.users:
        for scaled in centred.users if op_name(centred) == "aten.sub" and centred.args[0] is x else ():
            if op_name(scaled) != "aten.mul" or len(scaled.args) != 2:
                continue
            factor = scaled.args[1] if scaled.args[0] is centred else scaled.args[0]
            mean, rstd = _statistics(x, [("mul", factor), ("sub", centred.args[1])])
            if mean and rstd and _over_the_batch(x, centred.args[1]):
                return mean, rstd
    return None


def _over_the_batch(x: fx.Node, mean: object) -> bool:
    """Whether the mean is one of each channel, over enough elements of x and over dimension 0."""
    value, small = tensor_of(x), tensor_of(mean) if isinstance(mean, fx.Node) else None
    if value is None or small is None or value.dim() < 2 or numel(small) == 1:
        return False
    sizes = [1] * (value.dim() - small.dim()) + list(small.shape)
    kept = tuple(d for d, size in enumerate(sizes) if not isinstance(size, int) or size != 1)
    return 0 not in kept and kept == kept_dims(value.dim()) and numel(value) >= WIDE * numel(small)


def _strip_views(node: fx.Node | None) -> fx.Node | None:
    while node is not None and is_view(node) and op_name(node) != "getitem":
        node = node.args[0] if isinstance(node.args[0], fx.Node) else None
    return node


def _span(node: fx.Node) -> tuple[int, int] | None:
    """The range an integer (or a sign) lies in, where its operator fixes it."""
    maker, position = node, 0
    if op_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
        maker, position = node.args[0], node.args[1]
    name = op_name(maker)
    if name not in INDEX_MAKERS or not maker.args or not isinstance(maker.args[0], fx.Node):
        return None
    if name in ("aten.sign", "aten.sgn"):
        return (-1, 1)
    source = tensor_of(maker.args[0])
    if source is None or (name not in ("aten.argmax", "aten.argmin") and position != 1):
        return None
    if name == "prims._low_memory_max_pool_with_offsets":
        kernel = maker.args[1]
        if not isinstance(kernel, (list, tuple)):
            return None
        window = [size for size in kernel if isinstance(size, int)]
        return (0, math.prod(window) - 1) if len(window) == len(kernel) else None
    sizes = list(source.shape)
    if name == "aten.max_pool2d_with_indices":
        sizes = sizes[-2:]
    else:
        dim = {"aten.topk": 2}.get(name, 1)
        axis = maker.args[dim] if len(maker.args) > dim else (None if name in ("aten.argmax", "aten.argmin") else -1)
        if axis is not None and sizes:
            sizes = [sizes[axis]] if isinstance(axis, int) else [1]
    static = [size for size in sizes if isinstance(size, int)]
    return (0, max(math.prod(static) - 1, 0)) if len(static) == len(sizes) else None


# --- one record ----------------------------------------------------------------------------------


def _pinned(node: fx.Node, facts: _Facts) -> str:
    """Why backward may not run this operator again; "" if it may."""
    rule = rule_of(node)
    if node.op != "call_function":
        return "an input"
    if adapter.must_save(node):
        return "marked to be saved"
    if adapter.is_symbolic_scalar(node):
        return "a size"
    if is_random(node):
        return "random"
    if adapter.must_recompute(node):
        return ""
    if rule is None:
        return f"unknown operator {op_name(node)}"
    if node not in facts.again:
        return f"{op_name(node)} is expensive"
    if _is_decision(node, facts) and not all(adapter.must_recompute(n) for n in node.all_input_nodes):
        return "a decision is kept, not taken again"
    if op_name(node) in ("aten.add", "aten.sub") and len(facts.roots[node]) > 1 and all(
        facts.roots[node] != facts.roots[source] for source in node.all_input_nodes if source in facts.roots
    ):  # fmt: skip
        return "joins two branches"
    return ""


def _describe(
    node: fx.Node,
    joint: Joint,
    facts: _Facts,
    uses: dict[fx.Node, tuple[Use | None, Use | None, str]],
    reaches: dict[fx.Node, Reach],
    predicates: dict[fx.Node, list[str]],
    embedded: Affine | None,
    clamp: Clamp | None,
    min_bytes: int,
) -> Activation:
    value = tensor_of(node)
    demand, every, why = uses[node]
    kind, reason = _class_of(node, value, every, why, facts)
    size = nbytes(value) if value is not None else 0
    pinned = _pinned(node, facts)
    approximable = (
        kind in (Class.LINEAR, Class.SMOOTH, Class.ATTENTION, Class.SOFTMAX)
        and (element := element_of(node)) is not None and element.dtype in FLOATS
        and node in facts.depends and node not in facts.free
    )  # fmt: skip
    kept = ""
    if value is not None and size < max(min_bytes, 1):
        kept = f"smaller than min_bytes={min_bytes}"
    elif value is not None and (not is_dense(value) or type(value) is not adapter.FakeTensor):
        kept = "its elements do not fill their memory"
    return Activation(
        name=node.name,
        op=op_name(node),
        shape=tuple(adapter.hint(s) for s in value.shape) if value is not None else (),
        sizes=symbolic_shape(value) if value is not None else (),
        dtype=value.dtype if value is not None else None,
        device=str(value.device) if value is not None else "",
        nbytes=size,
        kind=kind,
        reach=reaches.get(node),
        reason=reason,
        predicates=tuple(predicates.get(node, ())),
        module=module_path(node),
        source=source_line(node),
        demand=demand,
        operands=tuple(
            Operand(source.name, operand_use(node, position, source, facts)) for position, source in operands(node)
        ),
        recomputable=not pinned,
        pinned=pinned,
        storable=(value is not None and not _is_whole_view(node, value) and not _left_to_backward(node))
        or adapter.is_symbolic_scalar(node)
        or adapter.is_opaque(node),
        partial=is_view(node) and value is not None and storage_of(node) is not node,
        free=node in facts.free,
        approximable=approximable,
        kept=kept,
        span=_span(node),
        nonnegative=facts.bounds[node][0] >= 0,
        weights=_is_weights(node),
        embedded=embedded,
        clamp=clamp,
        moments=_moments(node) if approximable else None,
    )


def _left_to_backward(node: fx.Node) -> bool:
    """Whether the user's checkpointing forbids to store the value.

    Random numbers would not come again: what they decide (a dropout mask) is stored all the same, as bits.
    """
    return adapter.must_recompute(node) and not any(is_random(n) for n in (node, *node.all_input_nodes))


def _is_whole_view(node: fx.Node, value: torch.Tensor) -> bool:
    """Whether the node shows all of another value: that one is stored, and this one rebuilt from it.

    Two saved tensors must never share memory: Inductor's backward writes over a saved tensor after its last use.
    """
    base = storage_of(node)
    whole = tensor_of(base)
    return (
        base is not node and whole is not None and numel(whole) == numel(value) and op_name(node) != "aten.as_strided"
    )


def _class_of(
    node: fx.Node, value: torch.Tensor | None, every: Use | None, why: str, facts: _Facts
) -> tuple[Class, str]:
    if node in facts.free:
        what = (
            "an input"
            if node.op == "placeholder"
            else "a constant"
            if node.op == "get_attr"
            else "an output or a view of an input"
        )
        return Class.FREE, f"{what}: alive during backward anyway"
    if value is None and is_view(node) and every is not None:
        return CLASS_OF_USE[every], why  # a tuple of views: never stored, but made of a value that may be
    if value is None:
        return Class.SENSITIVE, "not a tensor"
    if not value.dtype.is_floating_point:
        return Class.DISCRETE, "integers and masks are kept without loss" if not value.dtype.is_complex else "complex"
    if _is_decision(node, facts):
        return Class.DISCRETE, "takes a decision"
    if node not in facts.depends:
        return Class.SENSITIVE, "depends on no parameter and no float input: kept, never quantized"
    if node in facts.statistics:
        return Class.STATISTIC, "small next to the activations it was computed from"
    if every is None:
        return Class.SENSITIVE, "backward does not read it"
    return CLASS_OF_USE[every], why
