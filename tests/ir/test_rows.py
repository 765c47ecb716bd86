"""Rows: an operator that is run a slice at a time makes what it makes as a whole, for everything that claims so."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import cycle, pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.nn import functional as F

from fxapprox.ir.arguments import operands
from fxapprox.ir.operator_table import TABLE, Along
from fxapprox.ir.operators import op_name
from fxapprox.ir.rows import Part, Rows, rows, sums
from fxapprox.ir.tensors import tensor_of

aten, prims = torch.ops.aten, torch.ops.prims
Values = dict[fx.Node, Any]


def call(target: Any, *args: Any, **kwargs: Any) -> tuple[fx.Node, Values]:
    """A node of the operator, with the values of its operands and its own."""
    graph, values = fx.Graph(), Values()

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return [placed(v) for v in value] if isinstance(value, (list, tuple)) else value
        node = graph.placeholder(f"x{len(values)}")
        node.meta["val"] = values[node] = value
        return node

    node = graph.call_function(target, tuple(map(placed, args)), {k: placed(v) for k, v in kwargs.items()})
    node.meta["val"] = values[node] = target(*args, **kwargs)
    return node, values


def cut(value: Any, part: Part | None, start: int, stop: int) -> Any:
    if part is None:
        return value
    first, last = start * part.times, stop * part.times
    return value.narrow(part.dim, int(first), int(last - first)).contiguous()


def run(node: fx.Node, way: Rows, values: Values, start: int, stop: int) -> Any:
    """The node's result from the slices of its operands."""
    target, args, kwargs = way.call(node, lambda n, part: cut(values[n], part, start, stop), stop - start)
    return target(*args, **kwargs)


def splits(size: int, way: Rows) -> Iterator[list[tuple[int, int]]]:
    """Every way to cut in two, and into as many slices as there can be."""
    ends = [at for at in range(size + 1) if all((at * p.times).denominator == 1 for p in way.parts if p is not None)]
    assert ends[-1] == size
    yield from ([(0, at), (at, size)] for at in ends[1:-1])
    yield list(pairwise(ends))


def leaves(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def close(found: Tensor, whole: Tensor) -> None:
    assert found.dtype == whole.dtype
    torch.testing.assert_close(found, whole, equal_nan=True)


def check(node: fx.Node, values: Values) -> tuple[set[int], int]:
    """Holds what a node claims against its whole result; the dimensions that it claims, and how many sums.

    A gradient of a convolution's weight or bias is the sum of those of slices; what one result of several takes is
    checked with the operator that makes all.
    """
    whole, claimed = leaves(values[node]), set[int]()
    shape = next((result.shape for result in whole if isinstance(result, Tensor)), torch.Size())
    added: tuple[int, ...] = ()
    if op_name(node) == "aten.convolution_backward":
        shape, added = values[node.all_input_nodes[0]].shape, (1, 2)
    if op_name(node) == "getitem":
        return {dim for dim in range(len(shape)) if rows(node, dim) is not None}, len(sums(node))
    rank = len(shape)
    for dim in range(rank):
        way = rows(node, dim)
        if way is None:
            continue
        claimed.add(dim)
        assert len(way.parts) == len(list(operands(node)))
        for pieces in splits(shape[dim], way):
            made = [leaves(run(node, way, values, *piece)) for piece in pieces]
            for at, result in enumerate(whole):
                if isinstance(result, Tensor) and result.dim() and "empty" not in op_name(node):
                    found = [each[at] for each in made]
                    close(sum(found) if at in added else torch.cat(found, dim), result)  # type: ignore[arg-type]
    ways = sums(node)
    for way in ways:
        pairs = zip(way.parts, (operand for _, operand in operands(node)), strict=True)
        (size,) = {values[operand].shape[part.dim] for part, operand in pairs if part is not None}
        for pieces in splits(size, way):
            close(sum(run(node, way, values, *piece) for piece in pieces), whole[0])  # type: ignore[arg-type]
    return claimed, len(ways)


# --- operators of which the rows are not element by element ----------------------------------------------

torch.manual_seed(0)
X, Y, M = torch.randn(4, 6, 5), torch.randn(4, 5, 3), torch.randn(6, 5)
IMAGE, WEIGHT = torch.randn(4, 6, 8, 8), torch.randn(4, 6, 3, 3)
ROW, COLUMN = torch.tensor([2, 0, 1, 2]), torch.tensor([[1], [3], [0]])
IDS = torch.randint(0, 9, (4, 6))
PLACES = torch.randint(0, 5, (4, 6, 5))
Q, K = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 6, 4)
POOL = [2, 2], [2, 2], [0, 0], [1, 1]
conv = (None, [1, 1], [0, 0], [1, 1])


def attention_backward(causal: bool = False, mask: Tensor | None = None) -> tuple[fx.Node, Values]:
    key, given = Q if causal else K, {"attn_mask": mask}
    out, sums = aten._scaled_dot_product_flash_attention_for_cpu.default(Q, key, key, 0.0, causal, **given)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return call(backward, torch.randn_like(out), Q, key, key, out, sums, 0.0, causal, **given)


def gradients(
    weight: Tensor, *, stride: int = 1, transposed: bool = False, groups: int = 1, mask: Sequence[bool] = (True,) * 3
) -> tuple[fx.Node, Values]:
    """A call of what makes the gradients of a convolution of four images with a bias."""
    image = torch.randn(4, weight.shape[0] if transposed else weight.shape[1] * groups, 8, 8)
    bias = [weight.shape[1] * groups if transposed else len(weight)]
    how = ([stride] * 2, [1, 1], [1, 1], transposed, [0, 0], groups)
    outer = torch.randn_like(aten.convolution.default(image, weight, None, *how))
    return call(aten.convolution_backward.default, outer, image, weight, bias, *how, list(mask))


# per case: the dimensions that have to be claimed
CASES: dict[str, tuple[set[int], Callable[[], tuple[fx.Node, Values]]]] = {
    "aten.view: merged": ({0, 1}, lambda: call(aten.view.default, X, [24, 5])),
    "aten.view: split": ({0, 2}, lambda: call(aten.view.default, X.view(24, 5), [4, 6, 5])),
    "aten.view: kept": ({0, 1, 3}, lambda: call(aten.view.default, X, [-1, 2, 3, 5])),
    "aten.view: straddling": ({0}, lambda: call(aten.view.default, M.view(5, 6).contiguous(), [10, 3])),
    "aten.view: ones": ({1, 3}, lambda: call(aten.view.default, M, [1, 6, 1, 5])),
    "aten.view: nothing in common": ({0}, lambda: call(aten.view.default, M, [5, 6])),
    "aten.reshape": ({0, 1}, lambda: call(aten.reshape.default, X, [4, 30])),
    "aten._unsafe_view": ({0, 1}, lambda: call(aten._unsafe_view.default, X, [24, 5])),
    "aten.squeeze": (set(), lambda: call(aten.squeeze.default, X[None])),
    "aten.squeeze: a dimension": ({0, 1, 2}, lambda: call(aten.squeeze.dim, X[:, None], 1)),
    "aten.squeeze: dimensions": ({0, 2}, lambda: call(aten.squeeze.dims, X[:, None], [1, 2])),
    "aten.unsqueeze": ({0, 1, 3}, lambda: call(aten.unsqueeze.default, X, -2)),
    "aten.alias": ({0, 1, 2}, lambda: call(aten.alias.default, X)),
    "aten.permute": ({0, 1, 2}, lambda: call(aten.permute.default, X, [1, -1, 0])),
    "aten.transpose": ({0, 1, 2}, lambda: call(aten.transpose.int, X, 0, -1)),
    "aten.t": ({0, 1}, lambda: call(aten.t.default, M)),
    "aten.slice": ({0, 2}, lambda: call(aten.slice.Tensor, X, 1, 1, 5, 2)),
    "aten.select": ({0, 1}, lambda: call(aten.select.int, X, 1, 2)),
    "aten.split": ({0, 2}, lambda: call(aten.split.Tensor, X, 4, 1)),
    "aten.split_with_sizes": ({0, 1}, lambda: call(aten.split_with_sizes.default, X, [2, 3], -1)),
    "aten.unbind": ({0, 1}, lambda: call(aten.unbind.int, X, 1)),
    "aten.narrow": ({0, 2}, lambda: call(aten.narrow.default, X, 1, 1, 2)),
    "aten.expand": ({0, 1, 2}, lambda: call(aten.expand.default, M[:, :1], [4, -1, 7])),
    "prims.broadcast_in_dim": ({0, 1, 2}, lambda: call(prims.broadcast_in_dim.default, M[:1], [3, 7, 5], [1, 2])),
    "aten._fft_r2c": ({1}, lambda: call(aten._fft_r2c.default, X, [0, 2], 0, True)),
    "aten._fft_c2r": ({0, 1}, lambda: call(aten._fft_c2r.default, X + 0j, [2], 0, 8)),
    "aten._fft_c2c": ({0, 2}, lambda: call(aten._fft_c2c.default, X + 0j, [1], 0, True)),
    "aten.cat": ({0, 2}, lambda: call(aten.cat.default, [X, X[:, :2]], -2)),
    "aten.stack": ({0, 2, 3}, lambda: call(aten.stack.default, [X, X + 1], 1)),
    "aten.constant_pad_nd": ({0, 1}, lambda: call(aten.constant_pad_nd.default, X, [1, 2, 0, 0], 3.0)),
    "aten.flip": ({1}, lambda: call(aten.flip.default, X, [0, -1])),
    "aten.roll": ({0, 2}, lambda: call(aten.roll.default, X, [2], [1])),
    "aten.roll: all": (set(), lambda: call(aten.roll.default, X, [2])),
    "prims.rev": ({0, 2}, lambda: call(prims.rev.default, X, [1])),
    "aten.rot90": ({2}, lambda: call(aten.rot90.default, X, 1, [0, 1])),
    "aten.pixel_shuffle": ({0}, lambda: call(aten.pixel_shuffle.default, IMAGE[:, :4], 2)),
    "aten.pixel_unshuffle": ({0}, lambda: call(aten.pixel_unshuffle.default, IMAGE, 2)),
    "aten.tril": ({0}, lambda: call(aten.tril.default, X, 1)),
    "aten.triu": ({0}, lambda: call(aten.triu.default, X)),
    "aten.embedding": ({0, 1, 2}, lambda: call(aten.embedding.default, torch.randn(9, 5), IDS)),
    "aten.gather": ({0, 1, 2}, lambda: call(aten.gather.default, X, 2, PLACES[:, :, :2])),
    "aten.gather: of fewer rows": ({1, 2}, lambda: call(aten.gather.default, X, 2, PLACES[:3])),
    "aten.index_select": ({0, 1, 2}, lambda: call(aten.index_select.default, X, 1, ROW)),
    "aten.index": ({0, 1, 2}, lambda: call(aten.index.Tensor, X, [None, ROW])),
    "aten.index: several": ({0, 1, 2}, lambda: call(aten.index.Tensor, X, [ROW, COLUMN])),
    "aten.index: apart": ({0, 1, 2}, lambda: call(aten.index.Tensor, X, [COLUMN, None, ROW])),
    "aten.index: a mask": (set(), lambda: call(aten.index.Tensor, X, [X > 0])),
    "aten._unsafe_index": ({0, 1, 2, 3}, lambda: call(aten._unsafe_index.Tensor, IMAGE, [None, None, COLUMN, ROW])),
    "aten.scatter": ({0, 1}, lambda: call(aten.scatter.src, X, 2, PLACES[..., :1], X)),
    "aten.scatter: a number": ({0, 1}, lambda: call(aten.scatter.value, X, 2, PLACES[..., :1], -1.0)),
    "aten.scatter_add": ({0, 1}, lambda: call(aten.scatter_add.default, X, 2, PLACES, X)),
    "aten.scatter_reduce": ({0, 1}, lambda: call(aten.scatter_reduce.two, X, 2, PLACES, X, "amax")),
    "aten.index_add": ({0, 2}, lambda: call(aten.index_add.default, X, 1, ROW, X[:, :4], alpha=2)),
    "aten.index_copy": ({0, 2}, lambda: call(aten.index_copy.default, X, 1, ROW[:3], X[:, :3])),
    "aten.index_reduce": ({0, 2}, lambda: call(aten.index_reduce.default, X, 1, ROW, X[:, :4], "mean")),
    "aten.index_put": ({0, 2}, lambda: call(aten.index_put.default, X, [None, ROW[:3]], X[:, :3])),
    "aten.index_put: broadcast": ({2}, lambda: call(aten.index_put.default, X, [ROW, COLUMN], M[0], True)),
    "aten._unsafe_index_put": ({1, 2}, lambda: call(aten._unsafe_index_put.default, X, [ROW], X[:4], True)),
    "aten.slice_scatter": ({0, 2}, lambda: call(aten.slice_scatter.default, X, X[:, :2], 1, 1, 3)),
    "aten.select_scatter": ({0, 2}, lambda: call(aten.select_scatter.default, X, X[:, 0], 1, 3)),
    "aten.slice_backward": ({0, 2}, lambda: call(aten.slice_backward.default, X, [4, 9, 5], 1, 2, 8, 1)),
    "aten.select_backward": ({0, 2}, lambda: call(aten.select_backward.default, M, [6, 3, 5], 1, 2)),
    "aten.embedding_dense_backward": (
        {1}, lambda: call(aten.embedding_dense_backward.default, X, IDS, 9, -1, False)
    ),
    "aten.mm": ({0, 1}, lambda: call(aten.mm.default, M, M.T)),
    "aten.bmm": ({0, 1, 2}, lambda: call(aten.bmm.default, X, Y)),
    "aten.addmm": ({0, 1}, lambda: call(aten.addmm.default, M[:, 0], M, M.T)),
    "aten.addmm: a column": ({0, 1}, lambda: call(aten.addmm.default, M[:, :1], M, M.T, beta=2)),
    "aten.baddbmm": ({0, 1, 2}, lambda: call(aten.baddbmm.default, X[:, :, :1], X, Y)),
    "aten.mv": ({0}, lambda: call(aten.mv.default, M, M[0])),
    "aten.dot": (set(), lambda: call(aten.dot.default, M[0], M[1])),
    "aten.convolution": (
        {0, 1}, lambda: call(aten.convolution.default, IMAGE, WEIGHT, *conv, False, [0, 0], 1)
    ),
    "aten.convolution: transposed": (
        {0, 1}, lambda: call(aten.convolution.default, IMAGE[:, :4], WEIGHT, *conv, True, [0, 0], 1)
    ),
    "aten.convolution: groups": (
        {0}, lambda: call(aten.convolution.default, IMAGE, WEIGHT[:, :3], *conv, False, [0, 0], 2)
    ),
    "aten.convolution_backward": ({0}, lambda: gradients(WEIGHT, stride=2)),
    "aten.convolution_backward: transposed": ({0}, lambda: gradients(WEIGHT, stride=2, transposed=True)),
    "aten.convolution_backward: groups": ({0}, lambda: gradients(WEIGHT[:, :3], groups=2)),
    "aten.convolution_backward: transposed groups": ({0}, lambda: gradients(WEIGHT, transposed=True, groups=4)),
    "aten.convolution_backward: depthwise": ({0}, lambda: gradients(WEIGHT[:, :1], groups=4)),
    "aten.convolution_backward: of parameters": ({0}, lambda: gradients(WEIGHT, mask=(False, True, True))),
    "aten.convolution_backward: of images": ({0}, lambda: gradients(WEIGHT, mask=(True, False, False))),
    "aten.as_strided: in order": ({0}, lambda: call(aten.as_strided.default, X, [24, 5], [5, 1])),
    "aten.as_strided: split": ({0}, lambda: call(aten.as_strided.default, M, [3, 2, 5], [10, 5, 1], 0)),
    "aten.as_strided: by name": ({0}, lambda: call(aten.as_strided.default, X, size=[24, 5], stride=[5, 1])),
    "aten.as_strided: a window": (set(), lambda: call(aten.as_strided.default, M, [5, 2], [5, 1])),
    "prims.inductor_force_stride_order": (
        {0}, lambda: call(prims.inductor_force_stride_order.default, IMAGE, [384, 1, 48, 6])
    ),
    "prims.inductor_force_stride_order: columns": (
        {2}, lambda: call(prims.inductor_force_stride_order.default, X, [1, 4, 24])
    ),
    "aten.sum": ({0, 1}, lambda: call(aten.sum.dim_IntList, X, [1])),
    "aten.sum: kept": ({1}, lambda: call(aten.sum.dim_IntList, X, [0, -1], True)),
    "aten.mean": ({0}, lambda: call(aten.mean.dim, X, [0, 2])),
    "aten.var_mean": ({0, 1}, lambda: call(aten.var_mean.correction, X, [2], correction=0, keepdim=True)),
    "aten.var": ({0, 1}, lambda: call(aten.var.correction, X, [2], correction=0)),
    "aten.std": ({0, 1}, lambda: call(aten.std.correction, X, [2], correction=0)),
    "aten.amax": ({0, 2}, lambda: call(aten.amax.default, X, [1], True)),
    "aten.amin": (set(), lambda: call(aten.amin.default, X)),
    "aten.amin: rows": ({0}, lambda: call(aten.amin.default, M, [1])),
    "aten.prod": ({0, 1}, lambda: call(aten.prod.dim_int, X, 1)),
    "aten.any": ({0, 1}, lambda: call(aten.any.dim, X > 1, 1)),
    "aten.all": ({0, 1}, lambda: call(aten.all.dim, X > -1, 1)),
    "aten.logsumexp": ({0, 1}, lambda: call(aten.logsumexp.default, X, [1])),
    "aten.linalg_vector_norm": ({0, 1}, lambda: call(aten.linalg_vector_norm.default, X, 2, [1])),
    "aten.norm": ({0, 1}, lambda: call(aten.norm.ScalarOpt_dim, X, 2, [1])),
    "aten.argmax": ({0, 1}, lambda: call(aten.argmax.default, X, 1)),
    "aten.argmin": ({0, 2}, lambda: call(aten.argmin.default, X, 1, True)),
    "aten.max": ({0, 1}, lambda: call(aten.max.dim, X, 1)),
    "aten.max: of two": (set(), lambda: call(aten.max.other, X, X)),
    "aten.min": ({0, 1}, lambda: call(aten.min.dim, X, -1)),
    "aten.kthvalue": ({0, 1}, lambda: call(aten.kthvalue.default, X, 2, 1)),
    "aten.mode": ({0, 1}, lambda: call(aten.mode.default, X.round(), 1)),
    "aten.median": ({0, 1}, lambda: call(aten.median.dim, X, 1)),
    "aten.nanmedian": ({0, 1}, lambda: call(aten.nanmedian.dim, X, 1)),
    "aten.topk": ({0, 2}, lambda: call(aten.topk.default, X, 3, 1)),
    "aten.sort": ({0, 1}, lambda: call(aten.sort.default, X)),
    "aten.sort: stable": ({1, 2}, lambda: call(aten.sort.stable, X, stable=True, dim=0)),
    "aten.cummax": ({0, 2}, lambda: call(aten.cummax.default, X, 1)),
    "aten.cummin": ({0, 2}, lambda: call(aten.cummin.default, X, 1)),
    "aten.cumsum": ({0, 2}, lambda: call(aten.cumsum.default, X, 1)),
    "aten.cumprod": ({0, 2}, lambda: call(aten.cumprod.default, X, 1)),
    "aten.logcumsumexp": ({0, 2}, lambda: call(aten.logcumsumexp.default, X, 1)),
    "aten._softmax": ({0, 1}, lambda: call(aten._softmax.default, X, -1, False)),
    "aten._log_softmax": ({0, 2}, lambda: call(aten._log_softmax.default, X, 1, False)),
    "aten._softmax_backward_data": (
        {0, 1}, lambda: call(aten._softmax_backward_data.default, X, X.softmax(2), 2, X.dtype)
    ),
    "aten._log_softmax_backward_data": (
        {0, 1}, lambda: call(aten._log_softmax_backward_data.default, X, X.log_softmax(2), 2, X.dtype)
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu": (
        {0, 1, 2}, lambda: call(aten._scaled_dot_product_flash_attention_for_cpu.default, Q, K, K)
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu: causal": (
        {0, 1}, lambda: call(aten._scaled_dot_product_flash_attention_for_cpu.default, Q, Q, Q, 0.0, True)
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu: mask": (
        {0, 1, 2},
        lambda: call(
            aten._scaled_dot_product_flash_attention_for_cpu.default, Q, K, K, attn_mask=torch.randn(2, 1, 8, 6)
        ),
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": ({0, 1}, attention_backward),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward: causal": ({0, 1}, lambda: attention_backward(True)),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward: mask": (
        {0, 1}, lambda: attention_backward(mask=torch.randn(2, 1, 8, 6))
    ),
    "prims._low_memory_max_pool_with_offsets": (
        {0, 1}, lambda: call(prims._low_memory_max_pool_with_offsets.default, IMAGE, *POOL, False)
    ),
    "prims._low_memory_max_pool_offsets_to_indices": (
        {0, 1},
        lambda: call(
            prims._low_memory_max_pool_offsets_to_indices.default,
            prims._low_memory_max_pool_with_offsets.default(IMAGE, *POOL, False)[1], POOL[0], [8, 8], *POOL[1:],
        ),
    ),
    "aten._conj": ({0, 1}, lambda: call(aten._conj.default, M + 1j * M)),
    "aten.imag": ({0, 1}, lambda: call(aten.imag.default, M + 1j * M)),
    "aten.clamp": ({0, 1}, lambda: call(aten.clamp.default, M, -1, 1)),
    "aten.full": ({0, 1}, lambda: call(aten.full.default, [4, 6], 2.0)),
    "aten.zeros": ({0, 1}, lambda: call(aten.zeros.default, [4, 6])),
    "aten.ones": ({0, 1}, lambda: call(aten.ones.default, [4, 6])),
    "aten.new_zeros": ({0, 1}, lambda: call(aten.new_zeros.default, X, [4, 6])),
    "aten.new_ones": ({0, 1}, lambda: call(aten.new_ones.default, X, [4, 6])),
    "aten.new_full": ({0, 1}, lambda: call(aten.new_full.default, X, size=[4, 6], fill_value=1)),
    "aten.avg_pool1d": ({0, 1}, lambda: call(aten.avg_pool1d.default, X, [2])),
    "aten.avg_pool2d": ({0, 1}, lambda: call(aten.avg_pool2d.default, IMAGE, [2, 2])),
    "aten.avg_pool3d": ({0}, lambda: call(aten.avg_pool3d.default, IMAGE, [2, 2, 2])),
    "aten._adaptive_avg_pool2d": ({0, 1}, lambda: call(aten._adaptive_avg_pool2d.default, IMAGE, [3, 3])),
    "aten._adaptive_avg_pool3d": ({0}, lambda: call(aten._adaptive_avg_pool3d.default, IMAGE, [3, 3, 3])),
    "aten.adaptive_avg_pool1d": ({0, 1}, lambda: call(aten.adaptive_avg_pool1d.default, X, [3])),
    "aten.adaptive_avg_pool2d": ({0, 1}, lambda: call(aten.adaptive_avg_pool2d.default, IMAGE, [3, 3])),
    "aten.adaptive_avg_pool3d": ({0}, lambda: call(aten.adaptive_avg_pool3d.default, IMAGE, [3, 3, 3])),
    "aten.max_pool2d_with_indices": ({0, 1}, lambda: call(aten.max_pool2d_with_indices.default, IMAGE, [2, 2])),
    "aten.max_pool3d_with_indices": ({0}, lambda: call(aten.max_pool3d_with_indices.default, IMAGE, [2, 2, 2])),
    "aten.adaptive_max_pool2d": ({0, 1}, lambda: call(aten.adaptive_max_pool2d.default, IMAGE, [3, 3])),
    "aten.adaptive_max_pool3d": ({0}, lambda: call(aten.adaptive_max_pool3d.default, IMAGE, [3, 3, 3])),
}  # fmt: skip
VOLUME = torch.randn(3, 2, 4, 4, 4)
for spatial, value in ((1, X), (2, IMAGE), (3, VOLUME)):
    for name in ("reflection_pad", "replication_pad"):
        target, pad = getattr(aten, f"{name}{spatial}d").default, [1] * (2 * spatial)
        CASES[f"aten.{name}{spatial}d"] = ({0, 1}, lambda t=target, v=value, p=pad: call(t, v, p))  # type: ignore[misc]
    for name in TABLE:
        if name.startswith(("aten.upsample", "aten._upsample")) and name.removesuffix("_aa").endswith(f"{spatial}d"):
            target, size = getattr(aten, name[5:]).default, [s + 2 for s in value.shape[2:]]
            own = () if "nearest" in name else (False,)
            CASES[name] = ({0, 1}, lambda t=target, v=value, s=size, o=own: call(t, v, s, *o))  # type: ignore[misc]


@pytest.mark.parametrize("name", CASES)
def test_slices_together_are_the_whole(name: str) -> None:
    expected, made = CASES[name]
    node, values = made()
    assert op_name(node) == name.partition(":")[0]
    assert check(node, values)[0] == expected


SUMS: dict[str, tuple[int, Callable[[], tuple[fx.Node, Values]]]] = {
    "sum": (2, lambda: call(aten.sum.dim_IntList, X, [0, -1])),
    "sum of all": (3, lambda: call(aten.sum.default, X)),
    "mean": (0, lambda: call(aten.mean.default, X)),
    "mm": (1, lambda: call(aten.mm.default, M, M.T)),
    "bmm": (1, lambda: call(aten.bmm.default, X, Y)),
    "mv": (1, lambda: call(aten.mv.default, M, M[0])),
    "dot": (1, lambda: call(aten.dot.default, M[0], M[1])),
    "addmm": (0, lambda: call(aten.addmm.default, M[:, 0], M, M.T)),
    "embedding": (2, lambda: call(aten.embedding_dense_backward.default, X, IDS, 9, 3, False)),
    "embedding by frequency": (0, lambda: call(aten.embedding_dense_backward.default, X, IDS, 9, -1, True)),
}


@pytest.mark.parametrize("name", SUMS)
def test_summands_together_are_the_whole(name: str) -> None:
    expected, made = SUMS[name]
    assert check(*made())[1] == expected


INTO_ZEROS: dict[str, tuple[int, Callable[..., Any]]] = {
    "index_put": (1, lambda zeros, x, row, ids, places: aten.index_put(zeros, [row], x[0, :4], True)),
    "rows of rows": (2, lambda zeros, x, row, ids, places: aten._unsafe_index_put(zeros, [ids], x, True)),
    "columns": (
        2,
        lambda zeros, x, row, ids, places: aten.index_put(zeros, [None, places], x[0, :1].expand(9, 6, 5), True),
    ),
    "not added": (0, lambda zeros, x, row, ids, places: aten.index_put(zeros, [row], x[0, :4])),
    "scatter_add": (1, lambda zeros, x, row, ids, places: aten.scatter_add(zeros, 0, places, x[0])),
    "index_add": (1, lambda zeros, x, row, ids, places: aten.index_add(zeros, 0, row, x[0, :4], alpha=3)),
}


class Checked(fx.Interpreter):
    """Runs a graph, and holds every node's rows against its value."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.claimed: dict[str, set[int]] = {}
        self.summed: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function":
            values = {**self.env, n: value}
            map_arg((n.args, n.kwargs), lambda operand: values.setdefault(operand, self.env[operand]))
            self.claimed[n.name], self.summed[n.name] = check(n, values)
        return value


def filled_first(function: Callable[..., Any], value: float, like: Tensor, *others: Tensor) -> Any:
    return function(torch.full_like(like, value), *others)


@pytest.mark.parametrize("name", INTO_ZEROS)
def test_sums_into_zeros(name: str) -> None:
    expected, function = INTO_ZEROS[name]
    given = (torch.empty(9, 5), X, ROW, IDS, PLACES[0])
    for filled, ways in ((0.0, expected), (1.0, 0)):
        gm = make_fx(partial(filled_first, function, filled), tracing_mode="fake")(*given)
        (last,) = [n for n in gm.graph.nodes if n.op == "call_function"][-1:]
        checked = Checked(gm)
        checked.run(*given)
        assert checked.summed[last.name] == ways


# --- element by element ------------------------------------------------------------------------------

GIVEN: dict[str, Any] = {"number": 2, "float": 0.5, "int": 1, "bool": True, "ScalarType": torch.float32, "str": "none"}


def pointwise_calls(name: str) -> Iterator[tuple[fx.Node, Values]]:
    """Calls of an operator's overloads with operands that are broadcast."""
    space, _, short = name.partition(".")
    packet = getattr(getattr(torch.ops, space), short)
    for target in (getattr(packet, overload) for overload in packet.overloads()):
        required = [a for a in target._schema.arguments if not a.has_default_value()]
        for make in (lambda shape: torch.rand(shape) / 2 + 0.25, lambda shape: torch.randint(1, 3, shape)):
            shapes = cycle([(4, 6), (1, 6), (4, 1)] if space == "aten" and "backward" not in short else [(4, 6)])
            given = {a.name: GIVEN.get(str(a.type)) for a in required}
            for a in (a for a in required if "Tensor" in str(a.type)):
                value = make(next(shapes))
                given[a.name] = value > 0.4 if a.name in ("condition", "mask") else value
            try:
                node, values = call(target, **given)
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                continue  # not of this type, in place, or by names of dimensions
            if (result := tensor_of(node)) is not None and result.shape == (4, 6):
                yield node, values


APART = ("aten.empty_like", "prims.device_put", "aten._conj", "aten.imag", "aten.clamp")
ELEMENTS = [name for name, row in TABLE.items() if row.rows is Along.ELEMENTS and name not in APART]


def test_elements_by_themselves() -> None:
    unmet = []
    for name in ELEMENTS:
        found = [check(*made)[0] for made in pointwise_calls(name)]
        if {0, 1} not in found:
            unmet.append(name)
    assert unmet == []


def test_a_pointwise_operator_that_is_not_in_the_table() -> None:
    assert "aten.log_sigmoid_forward" not in TABLE
    assert "aten.special_i0e" not in TABLE
    assert check(*call(aten.special_i0e.default, M))[0] == {0, 1}


def test_every_row_that_claims_rows_is_checked() -> None:
    met = {name.partition(":")[0] for name in CASES}
    made = (Along.ELEMENTS, Along.SIZES, Along.RESULT)
    claiming = {name for name, row in TABLE.items() if row.rows is not None and row.rows not in made}
    assert claiming <= met


@pytest.mark.parametrize(
    "made",
    [
        lambda: call(aten.bernoulli.default, torch.rand(4, 6)), lambda: call(aten.add_.Tensor, torch.ones(4, 6), 1),
        lambda: call(aten.cholesky.default, torch.eye(4)), lambda: call(aten.unfold.default, X, 1, 2, 1),
    ],
    ids=["random", "in place", "decomposition", "no row"],
)  # fmt: skip
def test_what_has_to_be_run_as_a_whole(made: Callable[[], tuple[fx.Node, Values]]) -> None:
    assert check(*made()) == (set(), 0)


# --- graphs ------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(13, 8), nn.LayerNorm(8), nn.Linear(8, 13)
        self.qkv = nn.Linear(8, 24)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        h = self.embedding(tokens)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(h).chunk(3, -1))
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return F.cross_entropy(self.head(F.gelu(self.norm(h))).flatten(0, 1), targets.flatten())


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(13, 8), nn.Linear(8, 13)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(F.gelu(self.embedding(tokens))).flatten(0, 1), targets.flatten())


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.Linear(4 * 9, 5),
        )

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return F.nll_loss(F.log_softmax(self.head(h.flatten(1)), 1), targets)


def joint(
    model: nn.Module, *args: Tensor, mode: Literal["fake", "symbolic"] = "fake"
) -> tuple[fx.GraphModule, list[Tensor]]:
    """Loss and gradients of a model as one graph, and what it takes."""
    names, parameters = zip(*model.named_parameters(), strict=True)

    def step(parameters: Sequence[Tensor], *args: Tensor) -> Any:
        loss = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), args)
        return loss, torch.autograd.grad(loss, parameters)

    values = [parameter.detach().requires_grad_() for parameter in parameters]
    gm = make_fx(step, tracing_mode=mode, pre_dispatch=False)(values, *args)
    return gm, [*values, *args]


MODELS: dict[str, Callable[[], tuple[fx.GraphModule, list[Tensor]]]] = {
    "language": lambda: joint(LanguageModel(), torch.randint(13, (3, 4)), torch.randint(13, (3, 4))),
    "images": lambda: joint(Images(), torch.randn(4, 3, 8, 8), torch.randint(5, (4,))),
}


@pytest.mark.parametrize("name", MODELS)
def test_graphs_of_models(name: str) -> None:
    gm, given = MODELS[name]()
    checked = Checked(gm)
    with torch.no_grad():
        checked.run(given[:-2], *given[-2:])
    large = [n for n in gm.graph.nodes if checked.claimed.get(n.name) is not None and tensor_of(n) is not None]
    assert sum(bool(checked.claimed[n.name]) for n in large) > 0.6 * len(large)


def test_symbolic_sizes() -> None:
    """Where sizes are symbols the answers are those of numbers, or none; nothing is guarded."""
    tokens = torch.randint(13, (3, 4))
    model = Head()
    gm, _ = joint(model, tokens, tokens, mode="symbolic")
    fixed, _ = joint(model, tokens, tokens)
    environment = next(n.meta["val"] for n in gm.graph.nodes if "val" in n.meta and tensor_of(n) is not None)
    before = list(environment.fake_mode.shape_env.guards)
    claims = [(op_name(n), d, rows(n, d)) for n in gm.graph.nodes for d in range(4) if n.op == "call_function"]
    assert list(environment.fake_mode.shape_env.guards) == before
    known = [(name, d) for name, d, way in claims if way is not None]
    numbers = [(op_name(n), d) for n in fixed.graph.nodes for d in range(4) if n.op == "call_function" and rows(n, d)]
    assert set(known) <= set(numbers)
    assert {("aten._log_softmax", 0), ("aten.mm", 0), ("aten.gelu", 0), ("aten.embedding", 1)} <= set(known)


def test_a_getitem_takes_the_slice_of_its_result() -> None:
    maker, _ = call(aten.var_mean.correction, X, [2], correction=0)
    item = maker.graph.call_function(operator.getitem, (maker, 1))
    item.meta["val"] = maker.meta["val"][1]
    assert rows(item, 1) == Rows((Part(1, Fraction(1)),))
