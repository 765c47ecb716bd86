"""The table of operators: all that fxapprox knows of ATen, one row an operator.

An operator that is not in it is unknown: every operand has to be exact, and its result is never recomputed. So a gap
here costs memory, never a wrong gradient. Rows are read through the questions of ``operators.py``.

Names are those of operator packets ("aten.mul"; "aten." is left out below), so that an operator a torch release lacks
does no harm. Operators whose rows are alike share a line.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from fxapprox.ir.records import Use

H, L, S, A, X, E, D = Use.SHAPE, Use.LINEAR, Use.SMOOTH, Use.ATTENTION, Use.SOFTMAX, Use.SENSITIVE, Use.DECISION


class Kind(enum.Enum):
    """What sort of operator it is, where an analysis asks for the sort; the text says what they have in common."""

    IN_ORDER = "views that show the same elements in the same order"
    PART = "views of some of the elements"
    PERMUTATION = "views with the dimensions in another order"
    COPY = "the same elements in other memory"
    CAST = "the same elements in another type"
    JOIN = "several operands, one behind the other"
    PICK = "elements that indices name"
    PRODUCT = "products element by element"
    CONTRACTION = "sums of products: of matrices, convolutions"
    REDUCTION = "one number, or a few, of many elements"
    RUNNING = "linear, and some results are made of few elements: windows, prefixes, nodes of a graph, what is padded"
    POWER = "powers"
    EXPONENTIAL = "exponentials"
    LOGARITHM = "logarithms"
    SIGMOID = "steps that are smooth"
    LABEL = "floats that are decisions: their values are labels, not quantities"
    ATTENTION = "fused attention: the first result is as approximate as its operands, the others have to be exact"
    DECOMPOSITION = "decompositions of matrices, and what solves with one; besides all that torch calls linalg_..."


class Kernel(enum.Enum):
    """How Inductor lowers an operator, other than by the rule: what is cheap becomes pointwise, the rest is called."""

    POINTWISE = enum.auto()
    REDUCTION = enum.auto()
    SCATTER = enum.auto()


class Along(enum.Enum):
    """How one dimension of the result goes through to the operands: which of ``rows.py``'s functions says so."""

    ELEMENTS = "each element is made of one element of each operand"
    SIZES = "a list of sizes says how many elements there are"
    ORDER = "the same elements in the same order"
    PERMUTED = "the same dimensions in another order"
    EXPANDED = "elements are repeated"
    OTHERS = "whole along the dimensions that an argument names, each for itself along the others"
    LEADING = "whole along the last dimensions, each for itself along those before"
    JOINED = "one operand behind the other along one dimension"
    REDUCED = "one element for all along the dimensions that an argument names"
    PRODUCT = "rows times columns"
    CONVOLUTION = "images, and channels that are made"
    GRADIENTS = "gradients of a convolution: images, and sums over them"
    OUTERMOST = "the elements in an order of their own, one dimension outside the others"
    PICKED = "what an index names along one dimension"
    INDEXED = "what several indices name"
    PUT = "into places that an index names along one dimension"
    PUT_INDEXED = "into places that several indices name"
    COUNTED = "sums of rows by their index"
    ATTENTION = "batch and heads"
    ATTENTION_BACKWARD = "batch and heads, of all operands"
    RESULT = "one of several results"


class Comparison(NamedTuple):
    """Of z with a threshold: whether it is true of what lies above, and whether equality counts as above."""

    above: bool
    ties_above: bool


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Attributes:
        uses: how the result depends on each operand, in the schema's order; the last entry holds for the rest. None:
            nobody has said so, and every operand has to be exact.
        kind: what sort it is of; None if nothing asks.
        cheap: pointwise, a view or a copy: backward may run it again.
        view: the result shares memory with its first operand.
        unrounded: results are elements of the operands, signs and comparisons of them: nothing is rounded.
        factors: places of the two matrices that it multiplies.
        linear_in: places of the operands that it is linear in together, whatever the others are.
        divisor: place of the operand that it divides by.
        singular: places of the operands near whose 0, or ends of the range, the derivative has no bound.
        compares: how it compares its first operand with its second.
        length: it measures how long or large what it reduces is, as norms do.
        read_for: operands that are read for one of the results alone: {place: its place in output_mask}; of others,
            their shape is.
        chooses_reduction: it reduces into places by its argument ``reduce``, which is linear or not.
        indices: it gives integers that number what it chooses from: (the argument that says among what, or how many of
            the last dimensions it is; which of its results holds them).
        kernel: how Inductor lowers it, where not by the rule.
        heavy: Inductor rather keeps its result than computes it for each of several readers.
        rows: how one dimension of the result goes through to each operand; None: not at all, or nobody has said so.
    """

    uses: tuple[Use, ...] | None = None
    kind: Kind | None = None
    cheap: bool = False
    view: bool = False
    unrounded: bool = False
    factors: tuple[int, ...] = ()
    linear_in: tuple[int, ...] = ()
    divisor: int | None = None
    singular: tuple[int, ...] = ()
    compares: Comparison | None = None
    length: bool = False
    read_for: Mapping[int, int] = field(default_factory=dict)
    chooses_reduction: bool = False
    indices: tuple[str | int, int] | None = None
    kernel: Kernel | None = None
    heavy: bool = False
    rows: Along | None = None


UNKNOWN = Operator()

view = partial(Operator, (L,), cheap=True, view=True, linear_in=(0,))
shown = partial(view, unrounded=True)  # a view of which every element is known to be one of the operand's
cheap = partial(Operator, cheap=True)
pointwise = partial(cheap, rows=Along.ELEMENTS)
exactly = partial(cheap, (E,), rows=Along.ELEMENTS)  # the derivative is not bounded
deciding = partial(cheap, (D,), rows=Along.ELEMENTS)  # piecewise linear, or steps: it takes a branch
choosing = partial(deciding, unrounded=True)
linear = partial(Operator, (L,))
reduction = partial(Operator, kind=Kind.REDUCTION, rows=Along.REDUCED)
window = partial(linear, rows=Along.LEADING)
attention = partial(Operator, (A, A, A, E), kind=Kind.ATTENTION)

_UPSAMPLING = (
    "upsample_nearest1d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d"
    " _upsample_nearest_exact3d upsample_linear1d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa"
    " _upsample_bicubic2d_aa"
)

ROWS: tuple[tuple[str, Operator], ...] = (
    # Views: the bytes are those of the operand.
    ("view reshape _unsafe_view squeeze unsqueeze alias", shown(kind=Kind.IN_ORDER, rows=Along.ORDER)),
    ("permute transpose t", shown(kind=Kind.PERMUTATION, rows=Along.PERMUTED)),
    ("slice select split split_with_sizes unbind", shown(kind=Kind.PART, rows=Along.OTHERS)),
    ("getitem", shown(kind=Kind.PART, rows=Along.RESULT)),
    ("expand", shown(rows=Along.EXPANDED)),
    ("narrow", view(kind=Kind.PART, rows=Along.OTHERS)),
    ("detach fxapprox.in_memory fxapprox.fence", view(rows=Along.ELEMENTS)),
    ("fxapprox.after", Operator((L, H), cheap=True, view=True, linear_in=(0,))),
    ("diagonal unfold", view()),
    # The result of as_strided depends on the memory layout, which only an exact copy is sure to keep.
    ("as_strided", Operator((E,), cheap=True, view=True, linear_in=(0,), rows=Along.ORDER)),
    # Complex numbers and their parts, and transforms of Fourier's.
    ("_conj real imag", view(rows=Along.ELEMENTS)),
    ("view_as_real view_as_complex", view()),
    ("resolve_conj complex", pointwise((L,))),
    ("_fft_r2c _fft_c2r _fft_c2c", linear(rows=Along.OTHERS)),
    # Copies, casts and layout.
    ("clone", pointwise((L,), Kind.COPY, unrounded=True, linear_in=(0,))),
    ("prims.convert_element_type", pointwise((L,), Kind.CAST, linear_in=(0,))),
    ("_to_copy", pointwise((L,), Kind.CAST)),
    ("contiguous", pointwise((L,), unrounded=True)),
    ("prims.device_put lift_fresh_copy", pointwise((L,))),
    ("prims.inductor_force_stride_order", cheap((L,), rows=Along.OUTERMOST)),
    ("prims.broadcast_in_dim", cheap((L,), rows=Along.EXPANDED)),
    ("cat stack", cheap((L,), Kind.JOIN, unrounded=True, rows=Along.JOINED)),
    ("constant_pad_nd", cheap((L,), Kind.RUNNING, unrounded=True, rows=Along.OTHERS)),
    ("flip roll", cheap((L,), unrounded=True, rows=Along.OTHERS)),
    ("prims.rev rot90", cheap((L,), rows=Along.OTHERS)),
    ("repeat", cheap((L,), unrounded=True)),
    ("pixel_shuffle pixel_unshuffle", cheap((L,), rows=Along.LEADING)),
    ("channel_shuffle diag_embed", cheap((L,))),
    ("reflection_pad1d reflection_pad2d reflection_pad3d", cheap((L,), rows=Along.LEADING)),
    ("replication_pad1d replication_pad2d replication_pad3d", cheap((L,), rows=Along.LEADING)),
    # Affine arithmetic.
    ("add sub", pointwise((L,), linear_in=(0, 1))),
    ("neg", pointwise((L,), unrounded=True, linear_in=(0,))),
    ("rsub lerp", pointwise((L,))),
    ("sum_to_size", cheap((L,))),
    # What factors and quotients are depends on what their operands are: see analysis/reads.py.
    ("mul addcmul prims.fma", pointwise((L,), Kind.PRODUCT)),
    ("div", pointwise((L,), linear_in=(0,), divisor=1, singular=(1,))),
    ("where", pointwise((D, L, L), unrounded=True, linear_in=(1, 2))),
    # Gathering rows is linear in the table and exact in the indices.
    ("embedding", cheap((L, E), unrounded=True, rows=Along.PICKED)),
    ("gather index_select", cheap((L, E), Kind.PICK, unrounded=True, rows=Along.PICKED)),
    ("index", cheap((L, E), Kind.PICK, unrounded=True, rows=Along.INDEXED)),
    ("_unsafe_index", cheap((L, E), Kind.PICK, rows=Along.INDEXED)),
    ("masked_select take", Operator((L, E))),
    # Into places that indices name.
    ("index_put", Operator((L, E, L), Kind.RUNNING, linear_in=(0, 2), kernel=Kernel.SCATTER, rows=Along.PUT_INDEXED)),
    ("_unsafe_index_put", Operator((L, E, L), Kind.RUNNING, kernel=Kernel.SCATTER, rows=Along.PUT_INDEXED)),
    ("_unsafe_masked_index_put_accumulate", Operator((L, E, E, L), kernel=Kernel.SCATTER)),
    ("scatter", Operator((L, E, E, L), linear_in=(0, 3), chooses_reduction=True, rows=Along.PUT)),
    ("scatter_add", Operator((L, E, E, L), Kind.RUNNING, rows=Along.PUT)),
    ("scatter_reduce", Operator((L, E, E, L), Kind.RUNNING, chooses_reduction=True, rows=Along.PUT)),
    ("index_add", Operator((L, E, E, L), Kind.RUNNING, rows=Along.PUT)),
    ("index_copy", Operator((L, E, E, L), rows=Along.PUT)),
    ("index_reduce", Operator((L, E, E, L), chooses_reduction=True, rows=Along.PUT)),
    ("slice_scatter select_scatter", linear(linear_in=(0, 1), kernel=Kernel.POINTWISE, rows=Along.OTHERS)),
    ("diagonal_scatter", linear()),
    ("masked_fill", pointwise((L, E, L))),
    ("masked_scatter put", Operator((L, E, L))),
    ("embedding_dense_backward", Operator((L, E), rows=Along.COUNTED)),
    # Contractions: linear, but too expensive to run twice.
    ("mm bmm", linear(Kind.CONTRACTION, factors=(0, 1), rows=Along.PRODUCT)),
    ("addmm baddbmm", linear(Kind.CONTRACTION, factors=(1, 2), rows=Along.PRODUCT)),
    ("mv dot", linear(Kind.CONTRACTION, rows=Along.PRODUCT)),
    ("fxapprox.add_product fxapprox.put_part", linear()),
    ("convolution", linear(Kind.CONTRACTION, rows=Along.CONVOLUTION)),
    ("convolution_backward", linear(read_for={1: 1, 2: 0}, rows=Along.GRADIENTS)),
    ("_grouped_mm", Operator((L, L, E, L))),
    # Linear reductions, and what is linear beside them: too expensive, or too small, to run twice.
    ("sum mean", reduction((L,), linear_in=(0,), length=True, kernel=Kernel.REDUCTION)),
    ("cumsum", linear(Kind.RUNNING, kernel=Kernel.REDUCTION, rows=Along.OTHERS)),
    ("tril triu", linear(Kind.RUNNING, kernel=Kernel.POINTWISE, rows=Along.LEADING)),
    ("slice_backward select_backward", linear(linear_in=(0,), kernel=Kernel.POINTWISE, rows=Along.OTHERS)),
    ("im2col col2im trace embedding_backward", linear()),
    ("diagonal_backward unfold_backward index_select_backward", linear()),
    ("avg_pool2d _adaptive_avg_pool2d", window(Kind.RUNNING, kernel=Kernel.POINTWISE)),
    ("avg_pool1d avg_pool3d _adaptive_avg_pool3d", window(Kind.RUNNING)),
    ("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", window()),
    ("upsample_bilinear2d", window(Kind.RUNNING, kernel=Kernel.POINTWISE)),
    ("upsample_nearest2d", window(kernel=Kernel.POINTWISE)),
    ("upsample_nearest2d_backward", linear(kernel=Kernel.POINTWISE)),
    (_UPSAMPLING, window()),
    (" ".join(f"{name}_backward" for name in (*_UPSAMPLING.split(), "upsample_bilinear2d")), linear()),
    # Of the second operand they read the shape; indices and random numbers come behind it.
    ("avg_pool2d_backward max_pool2d_with_indices_backward", Operator((L, H, E), kernel=Kernel.POINTWISE)),
    ("avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward", Operator((L, H, E))),
    ("reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward", Operator((L, H, E))),
    ("replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward", Operator((L, H, E))),
    ("max_pool3d_with_indices_backward adaptive_max_pool2d_backward", Operator((L, H, E))),
    ("adaptive_max_pool3d_backward", Operator((L, H, E))),
    ("fractional_max_pool2d_backward fractional_max_pool3d_backward", Operator((L, H, E))),
    # Sampling is linear in the image; where it samples, it takes decisions on.
    ("grid_sampler_2d grid_sampler_3d", Operator((L, E))),
    ("grid_sampler_2d_backward grid_sampler_3d_backward", Operator((L, L, E), read_for={1: 1})),
    # Smooth functions: bounded derivative, so a small error stays small.
    ("tanh sigmoid", pointwise((S,), Kind.SIGMOID, heavy=True)),
    ("erf", pointwise((S,), Kind.SIGMOID)),
    ("erfc atan silu gelu mish", pointwise((S,))),
    ("glu", cheap((S,))),
    ("tanh_backward sigmoid_backward", Operator((L, S), linear_in=(0,), rows=Along.ELEMENTS)),
    ("silu_backward gelu_backward", Operator((L, S), linear_in=(0,), rows=Along.ELEMENTS)),
    ("mish_backward", Operator((L, S), rows=Along.ELEMENTS)),
    ("glu_backward", Operator((L, S))),
    # Fused normalizations: affine in the input, once the statistics are exact.
    ("native_layer_norm native_group_norm", Operator(kind=Kind.REDUCTION)),
    ("native_layer_norm_backward native_group_norm_backward", Operator((L, S, E))),
    # Softmax by its output.
    ("_softmax_backward_data _log_softmax_backward_data", Operator((L, X), linear_in=(0,), rows=Along.OTHERS)),
    # Piecewise linear functions take a branch.
    ("relu clamp clamp_min clamp_max abs maximum minimum", choosing()),
    ("hardtanh relu6 leaky_relu threshold", deciding()),
    ("sign sgn", choosing(kind=Kind.LABEL)),
    ("ceil floor round trunc heaviside", deciding(kind=Kind.LABEL)),
    ("frac fmod remainder", deciding()),
    ("isinf isnan signbit eq ne", choosing()),
    ("gt", choosing(compares=Comparison(above=True, ties_above=False))),
    ("ge", choosing(compares=Comparison(above=True, ties_above=True))),
    ("le", choosing(compares=Comparison(above=False, ties_above=False))),
    ("lt", choosing(compares=Comparison(above=False, ties_above=True))),
    ("logical_not logical_and logical_or logical_xor", choosing()),
    ("bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__", choosing()),
    ("threshold_backward", Operator((L, D), linear_in=(0,), rows=Along.ELEMENTS)),
    # Cheap, but only from exact operands: the derivative is not bounded, or the operand is a phase, of which many
    # turns leave no room for its error.
    ("exp", exactly(kind=Kind.EXPONENTIAL, heavy=True)),
    ("exp2 expm1 sinh cosh", exactly(kind=Kind.EXPONENTIAL)),
    ("log log2 log10 log1p", exactly(kind=Kind.LOGARITHM, singular=(0,), heavy=True)),
    ("reciprocal rsqrt", exactly(divisor=0, singular=(0,))),
    ("pow", exactly(kind=Kind.POWER, divisor=0, singular=(0,))),
    ("square", exactly(kind=Kind.POWER)),
    ("sqrt tan asin acos atanh lgamma digamma", exactly(singular=(0,))),
    ("atan2", exactly(singular=(0, 1))),
    ("sin cos hypot addcdiv", exactly()),
    ("prims._low_memory_max_pool_offsets_to_indices", cheap((E,), rows=Along.LEADING)),
    # Random numbers of a seed: where the seed is stored they come again, but torch does not make them for nothing.
    ("prims.inductor_random prims.inductor_randint", Operator((E,), kernel=Kernel.POINTWISE)),
    ("fxapprox.random_of_seed fxapprox.randint_of_seed", Operator((E,), kernel=Kernel.POINTWISE)),
    ("prims.inductor_lookup_seed", cheap((E,), kernel=Kernel.POINTWISE)),
    # Constants.
    ("full", cheap((E,), unrounded=True, rows=Along.SIZES)),
    ("zeros ones empty", cheap((E,), rows=Along.SIZES)),
    ("scalar_tensor prims.iota", cheap((E,), unrounded=True)),
    ("arange", cheap((E,))),
    ("full_like", cheap((H,), unrounded=True, rows=Along.ELEMENTS)),
    ("zeros_like ones_like empty_like", cheap((H,), rows=Along.ELEMENTS)),
    ("new_zeros new_ones new_full new_empty", cheap((H,), rows=Along.SIZES)),
    ("new_empty_strided", cheap((H,))),
    # Fused attention; of backward q, k, v and the output, the rest (mask, logsumexp, random state) is exact.
    ("_scaled_dot_product_flash_attention_for_cpu", attention(rows=Along.ATTENTION)),
    ("_scaled_dot_product_flash_attention", attention()),
    ("_scaled_dot_product_efficient_attention", attention()),
    ("_scaled_dot_product_cudnn_attention", attention()),
    ("_scaled_dot_product_fused_attention_overrideable", attention()),
    (
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        Operator((L, A, A, A, A, E), rows=Along.ATTENTION_BACKWARD),
    ),
    ("_scaled_dot_product_flash_attention_backward", Operator((L, A, A, A, A, E))),
    ("_scaled_dot_product_efficient_attention_backward", Operator((L, A, A, A, E, A, E))),
    ("_scaled_dot_product_cudnn_attention_backward", Operator((L, A, A, A, A, E))),
    ("_scaled_dot_product_fused_attention_overrideable_backward", Operator((L, A, A, A, E, A, E))),
    # Of these nobody has said how their results depend on their operands: those have to be exact.
    ("var_mean var std", reduction(length=True, kernel=Kernel.REDUCTION)),
    ("linalg_vector_norm norm", reduction(length=True)),
    ("amax amin prod any all logsumexp", reduction(kernel=Kernel.REDUCTION)),
    ("prims.prepare_softmax_online", Operator(kind=Kind.REDUCTION, kernel=Kernel.REDUCTION)),
    ("argmax argmin", Operator(indices=("dim", 0), kernel=Kernel.REDUCTION, rows=Along.REDUCED)),
    ("max min", Operator(indices=("dim", 1), kernel=Kernel.REDUCTION, rows=Along.REDUCED)),
    ("kthvalue mode median nanmedian", Operator(indices=("dim", 1), rows=Along.REDUCED)),
    ("topk sort cummax cummin", Operator(indices=("dim", 1), rows=Along.OTHERS)),
    ("cumprod logcumsumexp _softmax _log_softmax", Operator(rows=Along.OTHERS)),
    ("max_pool2d_with_indices adaptive_max_pool2d", Operator(indices=(2, 1), rows=Along.LEADING)),
    ("max_pool3d_with_indices adaptive_max_pool3d", Operator(indices=(3, 1), rows=Along.LEADING)),
    ("fractional_max_pool2d", Operator(indices=(2, 1))),
    ("fractional_max_pool3d", Operator(indices=(3, 1))),
    (
        "prims._low_memory_max_pool_with_offsets",
        Operator(indices=("kernel_size", 1), kernel=Kernel.POINTWISE, rows=Along.LEADING),
    ),
    ("cholesky cholesky_solve cholesky_inverse triangular_solve lu_unpack", Operator(kind=Kind.DECOMPOSITION)),
    ("geqrf ormqr orgqr logdet svd qr inverse", Operator(kind=Kind.DECOMPOSITION)),
)  # fmt: skip

TABLE: dict[str, Operator] = {
    name if "." in name or name == "getitem" else f"aten.{name}": row for names, row in ROWS for name in names.split()
}
