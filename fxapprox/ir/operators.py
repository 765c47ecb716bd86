"""What fxapprox knows about operators: how each result depends on each operand, and which are cheap to run twice.

This table is the whole of our knowledge of ATen. An operator that is not in it is unknown: every operand has to be
exact, and its result is never recomputed. So a gap here costs memory, never a wrong gradient.

Names are those of operator packets ("aten.mul"), so that an operator a torch release lacks does no harm.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.errors import OptionError
from fxapprox.ir.arguments import argument
from fxapprox.ir.records import Use

H, L, S, A, X, E, D = Use.SHAPE, Use.LINEAR, Use.SMOOTH, Use.ATTENTION, Use.SOFTMAX, Use.SENSITIVE, Use.DECISION


@dataclass(frozen=True, slots=True)
class Rule:
    """One operator.

    Attributes:
        uses: how the result depends on each positional operand; the last entry repeats.
        cheap: pointwise, a view or a copy: backward may run it again.
        view: the result shares memory with its first operand.
    """

    uses: tuple[Use, ...] = (E,)
    cheap: bool = False
    view: bool = False


def _rules(names: str, *uses: Use, cheap: bool = False, view: bool = False) -> dict[str, Rule]:
    return {
        name if "." in name or name == "getitem" else f"aten.{name}": Rule(uses or (E,), cheap, view)
        for name in names.split()
    }


RULES: dict[str, Rule] = {
    # Views: the bytes are those of the operand.
    **_rules(
        "view reshape _unsafe_view permute transpose t expand squeeze unsqueeze slice select split"
        " split_with_sizes unbind alias detach narrow diagonal unfold getitem fxapprox.in_memory fxapprox.fence",
        L, cheap=True, view=True,
    ),
    # The result of as_strided depends on the memory layout, which only an exact copy is sure to keep.
    **_rules("as_strided", E, cheap=True, view=True),
    # Complex numbers and their parts, and transforms of Fourier's.
    **_rules("_conj view_as_real view_as_complex real imag", L, cheap=True, view=True),
    **_rules("resolve_conj complex", L, cheap=True),
    **_rules("_fft_r2c _fft_c2r _fft_c2c", L),
    # Copies, casts and layout.
    **_rules(
        "clone contiguous _to_copy prims.convert_element_type prims.broadcast_in_dim constant_pad_nd cat stack"
        " repeat flip prims.rev roll rot90 prims.device_put lift_fresh_copy prims.inductor_force_stride_order"
        " pixel_shuffle pixel_unshuffle channel_shuffle diag_embed reflection_pad1d reflection_pad2d reflection_pad3d"
        " replication_pad1d replication_pad2d replication_pad3d",
        L, cheap=True,
    ),
    # Affine arithmetic. mul and div have rules of their own below.
    **_rules("add sub rsub neg sum_to_size addcmul prims.fma lerp", L, cheap=True),
    **_rules("where", D, L, L, cheap=True),
    # Gathering rows is linear in the table and exact in the indices.
    **_rules("embedding index _unsafe_index gather index_select", L, E, cheap=True),
    **_rules("index_put _unsafe_index_put", L, E, L),
    **_rules("scatter scatter_add scatter_reduce index_add index_copy index_reduce", L, E, E, L),
    **_rules("slice_scatter select_scatter diagonal_scatter", L),
    **_rules("masked_fill", L, E, L, cheap=True),
    **_rules("masked_scatter", L, E, L),
    **_rules("masked_select take", L, E),
    **_rules("put", L, E, L),
    **_rules("embedding_dense_backward", L, E),
    # Contractions and reductions: linear, but too expensive (or too small) to run twice.
    **_rules("mm bmm addmm baddbmm mv dot convolution convolution_backward", L),
    **_rules("_grouped_mm", L, L, E, L),
    **_rules("sum mean cumsum trace im2col col2im triu tril embedding_backward slice_backward select_backward", L),
    **_rules("diagonal_backward unfold_backward index_select_backward", L),
    **_rules("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", L),
    **_rules("_adaptive_avg_pool2d _adaptive_avg_pool3d", L),
    **_rules(
        " ".join(
            f"{name} {name}_backward" for name in (
                "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
                "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
                "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
            )
        ), L,
    ),
    # Of the second operand they read the shape; indices and random numbers come behind it.
    **_rules(
        "avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward"
        " reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward"
        " replication_pad2d_backward replication_pad3d_backward max_pool2d_with_indices_backward"
        " max_pool3d_with_indices_backward adaptive_max_pool2d_backward adaptive_max_pool3d_backward"
        " fractional_max_pool2d_backward fractional_max_pool3d_backward",
        L, H, E,
    ),
    # Sampling is linear in the image; where it samples, it takes decisions on. See READ_FOR, too.
    **_rules("grid_sampler_2d grid_sampler_3d", L, E),
    **_rules("grid_sampler_2d_backward grid_sampler_3d_backward", L, L, E),
    # Smooth functions: bounded derivative, so a small error stays small.
    **_rules("tanh sigmoid erf erfc atan silu gelu mish glu", S, cheap=True),
    **_rules("tanh_backward sigmoid_backward silu_backward gelu_backward mish_backward glu_backward", L, S),
    # Fused normalizations: affine in the input, once the statistics are exact.
    **_rules("native_layer_norm_backward", L, S, E),
    **_rules("native_group_norm_backward", L, S, E),
    # Softmax by its output.
    **_rules("_softmax_backward_data _log_softmax_backward_data", L, X),
    # Piecewise linear functions take a branch.
    **_rules(
        "relu clamp clamp_min clamp_max abs sign sgn maximum minimum hardtanh relu6 leaky_relu threshold",
        D, cheap=True,
    ),
    **_rules("ceil floor round trunc frac fmod remainder isinf isnan signbit heaviside", D, cheap=True),
    **_rules("eq ne lt le gt ge logical_not logical_and logical_or logical_xor", D, cheap=True),
    **_rules("bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__", D, cheap=True),
    **_rules("threshold_backward", L, D),
    # Cheap, but only from exact operands: the derivative is not bounded, or the operand is a phase, of which many
    # turns leave no room for its error.
    **_rules(
        "sin cos exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal pow square tan asin acos sinh cosh atanh"
        " lgamma digamma atan2 hypot addcdiv prims._low_memory_max_pool_offsets_to_indices",
        E, cheap=True,
    ),
    # Random numbers of a seed: where the seed is stored they come again, but torch does not make them for nothing.
    **_rules("prims.inductor_random prims.inductor_randint fxapprox.random_of_seed fxapprox.randint_of_seed", E),
    **_rules("prims.inductor_lookup_seed", E, cheap=True),
    # Constants.
    **_rules("full zeros ones empty scalar_tensor arange prims.iota", E, cheap=True),
    **_rules(
        "full_like zeros_like ones_like empty_like new_zeros new_ones new_full new_empty new_empty_strided",
        H, cheap=True,
    ),
    # The rules of these depend on what their operands are: see analysis/reads.py.
    **_rules("mul div", L, cheap=True),
}  # fmt: skip

# Operands that are read for one of the results alone: {place: its place in output_mask}; of others, their shape is.
READ_FOR: dict[str, dict[int, int]] = {
    "aten.convolution_backward": {1: 1, 2: 0},
    "aten.grid_sampler_2d_backward": {1: 1},
    "aten.grid_sampler_3d_backward": {1: 1},
}
# Reductions into places that indices name: linear if what they do is one of these.
REDUCE_INTO = frozenset("aten.scatter aten.scatter_reduce aten.index_reduce".split())
LINEAR_REDUCTIONS = (None, "sum", "add", "mean")

# Rows of operators that the user has described; part of the key of compiled graphs in caches.
TAUGHT: dict[str, Rule] = {}

# q, k, v and the output of fused attention, by position in the backward operator; the rest (mask, logsumexp,
# random state) has to be exact.
ATTENTION_OPERANDS: dict[str, dict[int, Use]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": {0: L, 1: A, 2: A, 3: A, 4: A},
    "aten._scaled_dot_product_flash_attention_backward": {0: L, 1: A, 2: A, 3: A, 4: A},
    "aten._scaled_dot_product_efficient_attention_backward": {0: L, 1: A, 2: A, 3: A, 5: A},
    "aten._scaled_dot_product_cudnn_attention_backward": {0: L, 1: A, 2: A, 3: A, 4: A},
    "aten._scaled_dot_product_fused_attention_overrideable_backward": {0: L, 1: A, 2: A, 3: A, 5: A},
}

# Their first result is as approximate as their operands; the others (logsumexp, random state) have to be exact.
ATTENTION_FORWARD = frozenset(name.removesuffix("_backward") for name in ATTENTION_OPERANDS)
RULES.update(dict.fromkeys(ATTENTION_FORWARD, Rule((A, A, A, E))))

# Views that show the same elements in the same order.
RESHAPES = frozenset("aten.view aten.reshape aten._unsafe_view aten.squeeze aten.unsqueeze aten.alias".split())

# What these give are elements of their operands, signs and comparisons of them: nothing is rounded.
UNROUNDED = RESHAPES | frozenset(
    "getitem aten.permute aten.transpose aten.t aten.expand aten.slice aten.select aten.split aten.split_with_sizes"
    " aten.unbind aten.clone aten.contiguous aten.where aten.cat aten.stack aten.flip aten.roll aten.repeat"
    " aten.constant_pad_nd aten.index aten.gather aten.index_select aten.embedding aten.full aten.full_like"
    " aten.scalar_tensor prims.iota aten.relu aten.clamp aten.clamp_min aten.clamp_max aten.maximum aten.minimum"
    " aten.abs aten.neg aten.sign aten.sgn aten.signbit aten.isnan aten.isinf aten.eq aten.ne aten.lt aten.le aten.gt"
    " aten.ge aten.logical_not aten.logical_and aten.logical_or aten.logical_xor aten.bitwise_and aten.bitwise_or"
    " aten.bitwise_xor aten.bitwise_not aten.__and__ aten.__or__ aten.__xor__".split()
)

REDUCTIONS = frozenset(
    "aten.var_mean aten.var aten.std aten.mean aten.sum aten.prod aten.amax aten.amin aten.logsumexp aten.any aten.all"
    " aten.linalg_vector_norm aten.norm aten.native_layer_norm aten.native_group_norm"
    " prims.prepare_softmax_online".split()
)

CONTRACTIONS = frozenset("aten.mm aten.bmm aten.addmm aten.baddbmm aten.mv aten.dot aten.convolution".split())
EXPONENTIALS = frozenset("aten.exp aten.exp2 aten.expm1 aten.sinh aten.cosh".split())
LOGARITHMS = frozenset("aten.log aten.log2 aten.log10 aten.log1p".split())

# Integers that number what an operator chooses from: (the argument that says among what, or how many of the last
# dimensions it is; which of the operator's results holds them).
INDICES: dict[str, tuple[str | int, int]] = {
    **dict.fromkeys(("aten.argmax", "aten.argmin"), ("dim", 0)),
    **dict.fromkeys(
        "aten.max aten.min aten.topk aten.sort aten.kthvalue aten.mode aten.cummax aten.cummin aten.median"
        " aten.nanmedian".split(), ("dim", 1)
    ),
    **dict.fromkeys("aten.max_pool2d_with_indices aten.adaptive_max_pool2d aten.fractional_max_pool2d".split(), (2, 1)),
    **dict.fromkeys("aten.max_pool3d_with_indices aten.adaptive_max_pool3d aten.fractional_max_pool3d".split(), (3, 1)),
    "prims._low_memory_max_pool_with_offsets": ("kernel_size", 1),
}  # fmt: skip


# Floats that are decisions: their values are labels, not quantities.
DISCRETE_FLOATS = frozenset("aten.sign aten.sgn aten.floor aten.ceil aten.round aten.trunc aten.heaviside".split())


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
    if known in ATTENTION_OPERANDS or (known in RULES and known not in TAUGHT):
        raise OptionError(f"teach: fxapprox knows {operator!r} already")
    if any(getattr(packet, overload)._schema.is_mutable for overload in packet.overloads()):
        raise OptionError(f"teach: {operator!r} writes to an argument")
    words = {use.name.lower(): use for use in (H, L, S, E, D)}
    wrong = [use for use in uses if use not in words]
    if wrong or not uses:
        given = repr(wrong[0]) if wrong else "no uses"
        raise OptionError(f"teach: {given} for {operator!r}; expected one or more of {', '.join(words)}")
    RULES[known] = TAUGHT[known] = Rule(tuple(words[use] for use in uses), cheap)


def op_name(node: fx.Node) -> str:
    """Name of the operator packet, e.g. "aten.mul"; for other targets a readable name."""
    return _target_name(node.target) if node.op == "call_function" else node.op


@cache
def _target_name(target: Any) -> str:
    if adapter.is_operator(target):
        return str(target.overloadpacket)
    return "getitem" if target is operator.getitem else getattr(target, "__name__", str(target))


def rule_of(node: fx.Node) -> Rule | None:
    """The operator's rule; None for an operator nobody has described."""
    return RULES.get(op_name(node))


def is_view(node: fx.Node) -> bool:
    """Whether the result shares memory with its first operand."""
    rule = rule_of(node)
    return rule is not None and rule.view


def is_pointwise(node: fx.Node) -> bool:
    """Whether torch says of the operator that each element of its result is made of one element of each operand."""
    return adapter.is_operator(node.target) and torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_label(node: fx.Node) -> bool:
    """Whether a float result is a decision: a sign or a whole number, by where its operand lies."""
    return op_name(node) in DISCRETE_FLOATS or _rounds(node)


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
    name = op_name(node)
    if name in ATTENTION_OPERANDS:
        return ATTENTION_OPERANDS[name].get(position, E)
    if _rounds(node):
        return D
    if name in REDUCE_INTO and argument(node, "reduce") not in LINEAR_REDUCTIONS:
        return E
    result = READ_FOR.get(name, {}).get(position)
    if result is not None and not argument(node, "output_mask")[result]:
        return H
    rule = RULES.get(name)
    return None if rule is None else rule.uses[min(position, len(rule.uses) - 1)]
