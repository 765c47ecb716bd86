"""How an operator is run a slice at a time along one dimension.

``rows`` takes a dimension of the result: its slices, put one behind the other, are the result. ``sums`` takes those
that the operator sums over: the results of slices, added up, are the result (but for rounding). Both say which slices
of the operands that takes. Where nothing is said, or a symbolic size leaves it open, there is no answer, and the
operator has to be run as a whole.

Which function answers stands in the table (``Operator.rows``); for an operator without a row torch's tag "pointwise".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx
from torch.fx.node import map_arg

from fxapprox import torch_adapter as adapter
from fxapprox.ir.arguments import argument, operands, place_of
from fxapprox.ir.operator_table import Along
from fxapprox.ir.operators import behind_views, is_pointwise, is_random, op_name, operator_of
from fxapprox.ir.tensors import element_of, symbolic_shape, tensor_of
from fxapprox.sizes import Size

Shape = tuple[Size, ...]


class Part(NamedTuple):
    """A slice of an operand: the steps [a * times : b * times] of a dimension, for the steps [a : b] of the result's.

    Only where dimensions are split or merged ``times`` is not 1; a * times and b * times have to be whole.
    """

    dim: int
    times: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a slice of a result is computed from.

    Attributes:
        parts: of each operand, in the order of ``operands``; None: it is read whole.
        sizes: (argument, index in it) of the sizes that the slice's length takes the place of.
    """

    parts: tuple[Part | None, ...]
    sizes: tuple[tuple[str, int], ...] = ()

    def call(
        self, node: fx.Node, of: Callable[[fx.Node, Part | None], Any], length: Any
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """(operator, args, kwargs) that make a slice: the node's, but where it counts from where memory begins.

        Args:
            of: gives the part of an operand, or all of it where the part is None.
            length: of the slice.
        """
        parts = iter(self.parts)
        given: Any = map_arg((node.args, node.kwargs), lambda operand: of(operand, next(parts)))
        args, kwargs = list(given[0]), dict(given[1])
        for name, index in self.sizes:
            at = place_of(node, name)
            sizes = list(kwargs[name] if at is None or name in kwargs else args[at])
            sizes[index] = length
            if at is None or name in kwargs:
                kwargs[name] = sizes
            else:
                args[at] = sizes
        if op_name(node) == "aten.as_strided":
            return torch.ops.aten.reshape.default, (args[0], *(args[1:2] or [kwargs["size"]])), {}
        return node.target, tuple(args), kwargs


Rule = Callable[[fx.Node, int, Shape], Rows | None]  # of a node, a dimension of its result, the result's shape
RULES: dict[Along, Rule] = {}


def rows(node: fx.Node, dim: int) -> Rows | None:
    """What a slice along a dimension of the result is computed from; None if the whole is needed, or nobody knows.

    Of several results it is the slice of each, along the same dimension.

    Args:
        dim: counted from the first; there are no slices of one step.
    """
    along = operator_of(node).rows or (Along.ELEMENTS if is_pointwise(node) else None)
    shape = _shape(argument(node, 0) if along is Along.GRADIENTS else node)
    if along is None or shape is None or not 0 <= dim < len(shape) or shape[dim] in (0, 1):
        return None
    if along is Along.RESULT:
        return Rows((Part(dim),)) if not _is_sum(node) and rows(argument(node, 0), dim) is not None else None
    return None if adapter.mutates(node) or is_random(node) else RULES[along](node, dim, shape)


def sums(node: fx.Node) -> tuple[Rows, ...]:
    """The dimensions that the operator sums over, each by the slices of the operands that make one summand."""
    return tuple(_sums(node)) if _shape(node) is not None and not adapter.mutates(node) else ()


def _is_sum(node: fx.Node) -> bool:
    """Whether it is the gradient of a convolution's weight or bias, taken from what makes all gradients."""
    return operator_of(argument(node, 0)).rows is Along.GRADIENTS and argument(node, 1) != 0


# --- helpers -----------------------------------------------------------------------------------------


def _along(along: Along) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of what stands in the table."""

    def register(rule: Rule) -> Rule:
        RULES[along] = rule
        return rule

    return register


def _shape(node: object) -> Shape | None:
    """The shape of a node's value, or of the first of several."""
    value = element_of(node) if isinstance(node, fx.Node) else None
    return None if value is None else symbolic_shape(value)


def _parts(node: fx.Node, dims: Mapping[int, int | Part | None], *sizes: tuple[str, int]) -> Rows:
    """Rows by {place of an operand: the dimension that is sliced}; operands that are left out are read whole."""
    found = (dims.get(place) if tensor_of(operand) is not None else None for place, operand in operands(node))
    return Rows(tuple(Part(dim) if isinstance(dim, int) else dim for dim in found), sizes)


def _alike(node: fx.Node, dim: int, size: Size, of: Sequence[int] | None = None) -> Rows | None:
    """Rows by the same dimension of all tensors (or those at some places), if all have it in this size."""
    places = {place: shape for place, operand in operands(node) if tensor_of(operand) is not None
              and (shape := _shape(operand)) is not None and (of is None or place in of)}  # fmt: skip
    same = all(dim < len(shape) and shape[dim] == size for shape in places.values())
    return _parts(node, dict.fromkeys(places, dim)) if same and places else None


def _broadcast(shape: Shape, dim: int, result: Shape) -> Part | bool | None:
    """The part of an operand that is broadcast to the result; None: whole; False: it is not broadcast so."""
    own = dim - (len(result) - len(shape))
    if own < 0 or shape[own] == 1:
        return None
    return Part(own) if shape[own] == result[dim] else False


def _all_broadcast(
    node: fx.Node, dim: int, result: Shape, fixed: Mapping[int, int | None] | None = None
) -> Rows | None:
    """Rows by broadcasting every operand, but those at ``fixed`` places, to the result."""
    fixed = fixed or {}
    found: list[Part | None] = []
    for place, operand in operands(node):
        shape = _shape(operand) if tensor_of(operand) is not None else ()
        if place in fixed:
            at = fixed[place]
            part: Part | bool | None = None if at is None else Part(at)
        else:
            part = False if shape is None else _broadcast(shape, dim, result)
        if isinstance(part, bool):
            return None
        found.append(part)
    return Rows(tuple(found))


def _named(node: fx.Node, rank: int, *names: str) -> list[int]:
    """The dimensions that an argument names, counted from the first; nothing where it names none."""
    for name in names or ("dim", "dims"):
        given = argument(node, name)
        if given is not None:
            return [d % rank for d in (given if isinstance(given, (tuple, list)) else [given])] if rank else []
    return []


# --- element by element, and other shapes ------------------------------------------------------------------


@_along(Along.ELEMENTS)
def _elements(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    return _all_broadcast(node, dim, shape)


@_along(Along.SIZES)
def _by_sizes(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    return _parts(node, {}, ("size", dim))


@_along(Along.ORDER)
def _in_order(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    source = _shape(argument(node, 0))
    part = None if source is None else _same_elements(source, shape, dim)
    if source is None or part is None:
        return None
    if op_name(node) == "aten.as_strided" and not (_is_reshape(node) and math.prod(shape[:dim]) == 1):
        return None  # its strides are those of the whole
    if op_name(node) == "aten.squeeze" and part.dim in (_named(node, len(source)) or range(len(source))):
        return None  # a slice of one step would lose the dimension
    return _parts(node, {0: part}, *((name, dim) for name in ("size", "shape") if place_of(node, name) is not None))


def _is_reshape(node: fx.Node) -> bool:
    """Whether what is addressed by strides are all elements, in their order."""
    source, result = tensor_of(argument(node, 0)), tensor_of(node)
    assert source is not None
    assert result is not None
    return source.is_contiguous() and result.is_contiguous() and source.numel() == result.numel()


def _same_elements(source: Shape, result: Shape, dim: int) -> Part | None:
    """Where the slices of a reshaped value lie in the one that it is a reshape of, if they do in one dimension.

    As many elements lie before one dimension as before the other, so as many do behind it, and in it.
    """
    before = math.prod(result[:dim])
    for own, size in enumerate(source):
        if size != 1 and math.prod(source[:own]) == before:
            times = sympy.sympify(size) / result[dim]
            return Part(own, Fraction(int(times.p), int(times.q))) if isinstance(times, sympy.Rational) else None
    return None


@_along(Along.PERMUTED)
def _permuted(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    order = list(range(len(shape)))
    if op_name(node) == "aten.permute":
        order = _named(node, len(shape))
    elif op_name(node) == "aten.t":
        order.reverse()
    else:
        one, other = (argument(node, place) % len(shape) for place in (1, 2))
        order[one], order[other] = other, one
    return _parts(node, {0: order[dim]})


@_along(Along.EXPANDED)
def _expanded(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    source = _shape(argument(node, 0))
    if source is None:
        return None
    kept = argument(node, "broadcast_dimensions")
    if kept is None:
        name, part = "size", _broadcast(source, dim, shape)
    else:
        name, part = "shape", _broadcast((source[kept.index(dim)],), 0, (shape[dim],)) if dim in kept else None
        part = Part(kept.index(dim)) if isinstance(part, Part) else part
    return None if isinstance(part, bool) else _parts(node, {0: part}, (name, dim))


@_along(Along.JOINED)
def _joined(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    (joined,) = _named(node, len(shape))
    if dim == joined:
        return None
    own = dim - 1 if op_name(node) == "aten.stack" and dim > joined else dim
    return _alike(node, own, shape[dim])


# --- whole along some dimensions ---------------------------------------------------------------------------


@_along(Along.OTHERS)
def _others(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    """Results and operands that lack the named dimension have those behind it one place further to the front."""
    shapes = {place: s for place, operand in operands(node) if tensor_of(operand) is not None
              and (s := _shape(operand)) is not None}  # fmt: skip
    rank = max(map(len, (shape, *shapes.values())))
    named = _padded(node, rank) if op_name(node) == "aten.constant_pad_nd" else _named(node, rank)
    if not named and op_name(node) != "aten.constant_pad_nd":
        return None  # all of them, as roll without dimensions
    at = dim + 1 if len(shape) < rank and dim >= named[0] else dim
    if at in named:
        return None
    parts = {place: at - 1 if len(s) < rank and at > named[0] else at for place, s in shapes.items()}
    if any(shapes[place][own] != shape[dim] for place, own in parts.items()):
        return None
    return _parts(node, parts, *((("input_sizes", at),) if argument(node, "input_sizes") is not None else ()))


def _padded(node: fx.Node, rank: int) -> list[int]:
    pad = argument(node, "pad")
    pairs = zip(pad[::2], pad[1::2], strict=True)
    return [rank - 1 - at for at, ends in enumerate(pairs) if ends != (0, 0)]


LAST = {"aten.tril": 2, "aten.triu": 2, "aten.pixel_shuffle": 3, "aten.pixel_unshuffle": 3}


@_along(Along.LEADING)
def _leading(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    """Of images and the like the name says how many dimensions they have: upsample_nearest2d; or the window does."""
    dims, window = re.search(r"(\d)d", op_name(node)), argument(node, "kernel_size")
    last = int(dims[1]) if dims else len(window) if window is not None else LAST[op_name(node)]
    return _alike(node, dim, shape[dim], of=(0,)) if dim < len(shape) - last else None


@_along(Along.REDUCED)
def _reduced(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    source, reduced = _reduction(node)
    kept = [d for d in range(len(source)) if d not in reduced]
    own = dim if len(shape) == len(source) else kept[dim] if len(kept) == len(shape) else None
    if own is None or own in reduced or source[own] != shape[dim] or len(list(operands(node))) != 1:
        return None
    return _parts(node, {0: own})


def _reduction(node: fx.Node) -> tuple[Shape, list[int]]:
    """(shape of the operand, dimensions that are reduced)."""
    source = _shape(argument(node, 0)) or ()
    return source, _named(node, len(source), "dim") or list(range(len(source)))


# --- products ----------------------------------------------------------------------------------------


@_along(Along.PRODUCT)
def _product(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    """Batches come first, then the rows of the left factor, then the columns of the right one."""
    left, right = operator_of(node).factors or (0, 1)
    batches = 1 if op_name(node) in ("aten.bmm", "aten.baddbmm") else 0
    dims = (dim, dim) if dim < batches else (dim, None) if dim == batches else (None, dim)
    return _all_broadcast(node, dim, shape, {left: dims[0], right: dims[1]})


@_along(Along.CONVOLUTION)
def _convolution(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    image = _shape(argument(node, 0))
    if image is None or len(image) != len(shape) or dim > 1 or (dim == 1 and argument(node, "groups") != 1):
        return None
    return _parts(node, {0: 0} if dim == 0 else {1: 1 if argument(node, "transposed") else 0, 2: 0})


@_along(Along.GRADIENTS)
def _gradients(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    """What is read: the gradient that comes in, and the image; the weight whole."""
    image = _shape(argument(node, 1))
    return _parts(node, {0: 0, 1: 0}) if dim == 0 and image is not None and image[0] == shape[0] else None


@_along(Along.OUTERMOST)
def _outermost(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    strides = argument(node, 1)
    outside = all(step < strides[dim] for at, step in enumerate(strides) if at != dim and shape[at] != 1)
    return _elements(node, dim, shape) if outside else None


@_along(Along.ATTENTION)
def _attention(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    """Batches and heads; queries, where the mask does not depend on their number."""
    query, key, value = (_shape(argument(node, place)) for place in range(3))
    causal = argument(node, "is_causal")
    if query is None or key is None or value is None or dim > 2 or query[dim] != shape[dim] or (dim == 2 and causal):
        return None
    if dim < 2 and not key[dim] == value[dim] == shape[dim]:
        return None
    others = None if dim == 2 else dim
    return _all_broadcast(node, dim, (*shape[:3], key[2]), {0: dim, 1: others, 2: others})


@_along(Along.ATTENTION_BACKWARD)
def _attention_backward(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    key = _shape(argument(node, "key"))
    if key is None or dim > 1 or key[dim] != shape[dim] or argument(node, "dropout_p"):
        return None
    return _all_broadcast(node, dim, (*shape[:3], key[2]), dict.fromkeys(range(6), dim))


# --- indices -----------------------------------------------------------------------------------------


@_along(Along.PICKED)
def _picked(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    if op_name(node) == "aten.embedding":
        return _parts(node, {1: dim} if dim < len(shape) - 1 else {0: 1})
    (among,) = _named(node, len(shape))
    if op_name(node) == "aten.index_select":
        return _parts(node, {2: 0} if dim == among else {0: dim})
    return _parts(node, {2: dim}) if dim == among else _alike(node, dim, shape[dim])


@_along(Along.INDEXED)
def _indexed(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    layout = _layout(node)
    if layout is None:
        return None
    own, index = layout[dim]
    if own is not None:
        return _parts(node, {0: own})
    return _all_broadcast(node, index, _indices_shape(node) or (), {0: None})


@_along(Along.PUT)
def _put(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    (into,) = _named(node, len(shape))
    if dim == into:
        return None
    return _alike(node, dim, shape[dim], None if op_name(node).startswith("aten.scatter") else (0, 3))


@_along(Along.PUT_INDEXED)
def _put_indexed(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    layout, values = _layout(node), _shape(argument(node, "values"))
    if layout is None or values is None or (dim, 0) not in layout:
        return None
    picked, at = _layout_shape(node, layout), layout.index((dim, 0))
    part = _broadcast(values, at, picked)
    return None if isinstance(part, bool) else _parts(node, {0: dim, 2: part})


@_along(Along.COUNTED)
def _counted(node: fx.Node, dim: int, shape: Shape) -> Rows | None:
    gradient = _shape(argument(node, 0))
    return _parts(node, {0: len(gradient) - 1}) if gradient is not None and dim == 1 else None


def _layout(node: fx.Node) -> list[tuple[int | None, int]] | None:
    """Of each dimension of what indices name: (the indexed value's dimension, 0) or (None, that of the indices)."""
    source, picked, given = _shape(argument(node, 0)), _indices_shape(node), argument(node, "indices")
    if source is None or picked is None:
        return None
    places = [at for at, index in enumerate(given) if index is not None]
    kept: list[tuple[int | None, int]] = [(d, 0) for d in range(len(source)) if d not in places]
    together = places == list(range(places[0], places[-1] + 1))
    first = places[0] if together else 0
    return kept[:first] + [(None, at) for at in range(len(picked))] + kept[first:]


def _indices_shape(node: fx.Node) -> Shape | None:
    """The shape that the indices are broadcast to; None for masks, and where sizes leave it open."""
    given = [index for index in argument(node, "indices") if index is not None]
    tensors = [tensor_of(index) for index in given if isinstance(index, fx.Node)]
    if not tensors or len(tensors) != len(given) or any(t is None or t.dtype.itemsize == 1 for t in tensors):
        return None
    shapes = [symbolic_shape(t) for t in tensors if t is not None]
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    sizes = [{size for size in column if size != 1} or {1} for column in columns]
    return tuple(next(iter(found)) for found in sizes) if all(len(found) == 1 for found in sizes) else None


def _layout_shape(node: fx.Node, layout: Sequence[tuple[int | None, int]]) -> Shape:
    source, picked = _shape(argument(node, 0)) or (), _indices_shape(node) or ()
    return tuple(picked[index] if own is None else source[own] for own, index in layout)


# --- sums --------------------------------------------------------------------------------------------


def _sums(node: fx.Node) -> Iterator[Rows]:
    name = op_name(node)
    if operator_of(node).rows is Along.RESULT and _is_sum(node):
        yield Rows((Part(0),))
    elif name == "aten.sum":
        source, reduced = _reduction(node)
        yield from (_parts(node, {0: dim}) for dim in reduced if source[dim] != 1)
    elif name in ("aten.mm", "aten.bmm", "aten.mv", "aten.dot"):
        batches = 1 if name == "aten.bmm" else 0
        yield _parts(node, {0: 0 if name == "aten.dot" else batches + 1, 1: batches})
    elif name == "aten.embedding_dense_backward" and not argument(node, "scale_grad_by_freq"):
        yield from (_parts(node, {0: dim, 1: dim}) for dim in range(len(_shape(argument(node, 1)) or ())))
    elif name in ("aten.scatter_add", "aten.index_add") and is_zero(argument(node, 0)):
        index = _shape(argument(node, "index")) or ()
        (into,) = _named(node, len(_shape(node) or ())) or [0]
        if name == "aten.index_add":
            yield _parts(node, {2: 0, 3: into})
        elif _shape(argument(node, "src")) == index:
            yield _parts(node, {2: into, 3: into})
    elif operator_of(node).rows is Along.PUT_INDEXED and argument(node, "accumulate") and is_zero(argument(node, 0)):
        yield from _sums_of_places(node)


def _sums_of_places(node: fx.Node) -> Iterator[Rows]:
    layout, picked, values = _layout(node), _indices_shape(node), _shape(argument(node, "values"))
    if layout is None or picked is None or values is None:
        return
    whole = _layout_shape(node, layout)
    for dim, size in enumerate(picked):
        value = _broadcast(values, layout.index((None, dim)), whole)
        indices = _all_broadcast(node, dim, picked, {0: None, 2: None})
        if size != 1 and isinstance(value, Part) and indices is not None:
            yield Rows((*indices.parts[:-1], value))


def is_zero(node: fx.Node) -> bool:
    """Whether the value is made of zeros."""
    made = behind_views(node)
    fill = argument(made, "fill_value")
    return op_name(made) in ("aten.zeros", "aten.zeros_like", "aten.new_zeros") or (
        op_name(made) in ("aten.full", "aten.full_like", "aten.new_full")
        and isinstance(fill, (int, float))
        and fill == 0
    )
