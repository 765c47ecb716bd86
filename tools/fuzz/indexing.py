"""Lines that read and write at indices: gathers, embeddings, scatters."""

from __future__ import annotations

from tools.fuzz.scope import Scope

READ = (
    "{x}[{i}]", "torch.index_select({x}, 0, {i})", "{x}[:, {i}]", "{x}[..., {i}]", "torch.take({x}, {i})",
    "torch.gather({x}, 0, {i}.reshape(-1, *[1] * ({rank} - 1)).expand_as({x}[{i}]))", "{x}[{i}, {i}]",
    "torch.index_add({x}, 0, {i}, {x}[{i}])", "torch.index_put({x}, ({i},), {x}[{i}] * 2, accumulate=True)",
    "torch.index_put({x}, ({i},), torch.ones_like({x}[{i}]))", "torch.index_copy({x}, 0, {i}, {x}[{i}])",
    "torch.zeros_like({x}).index_add_(0, {i}, {x}[{i}])", "{x}.index_fill(0, {i}, 0.5)",
    "torch.zeros_like({x}).scatter_add(0, ({x} > 0).long(), {x})", "torch.scatter({x}, 0, ({x} > 0).long(), {x} * 2)",
    "torch.scatter_reduce({x}, 0, ({x} > 0).long(), {x} * 2, 'sum')", "torch.take_along_dim({x}, {x}.argsort(0), 0)",
    "torch.scatter_reduce({x}, 0, ({x} > 0).long(), {x} * 2, 'amax')", "{x}.gather(-1, {x}.argmax(-1, keepdim=True))",
    "{x}[torch.arange({x}.shape[0]), 0]", "torch.where({i} > 1, {x}.sum(), {x}.mean())",
    "torch.scatter_reduce({x}, 0, ({x} > 0).long(), {x} * 2, 'mean')",
)  # fmt: skip


def index(scope: Scope) -> None:
    """With indices that are an input."""
    if x := scope.pick(lambda t: t.is_floating_point() and t.dim() > 0):
        size = min(scope.values[x].shape)
        i = scope.add("i", (scope.choose((3, 5)),), fill=size, dtype="int64")
        scope.emit(scope.choose(READ).format(x=x, i=i, rank=scope.values[x].dim()))


ALONG = (
    "torch.index_select({x}, {d}, {i})", "torch.index_select({x}, index={i}, dim={d})",
    "torch.index_add({x}, {d}, {i}, torch.index_select({x}, {d}, {i}))",
    "torch.zeros_like({x}).index_add(index={i}, dim={d}, source=torch.index_select({x}, {d}, {i}), alpha=2)",
    "torch.gather({x}, {d}, {x}.argsort({d}))", "torch.index_copy({x}, {d}, {i}, torch.index_select({x}, {d}, {i}))",
    "torch.index_select({x}, {d}, {i}) * torch.sigmoid(torch.index_select({x}, {d}, {i}.flip(0)))",
)  # fmt: skip


def along(scope: Scope) -> None:
    """Of any dimension, with indices that are an input."""
    if x := scope.pick(lambda t: t.is_floating_point() and t.dim() > 0):
        dim = scope.integer(-1, scope.values[x].dim() - 2)
        i = scope.add("i", (5,), fill=scope.values[x].shape[dim], dtype="int64")
        scope.emit(scope.choose(ALONG).format(x=x, i=i, d=dim))


def edges(scope: Scope) -> None:
    """Nodes to edges and back: ends gathered, gates or a softmax over a node's edges, sums scattered."""
    x = scope.pick(lambda t: t.is_floating_point() and t.dim() == 2 and t.shape[0] > 2)
    if x is None:
        return
    rows, width = scope.values[x].shape
    start, end = (scope.add("i", (12,), fill=rows, dtype="int64") for _ in range(2))
    first, second = (scope.emit(f"F.linear({x}, {scope.parameter((8, width))})") for _ in range(2))
    made = scope.emit(f"{first}[{start}] + {second}[{end}]") if first and second else None
    if not made:
        return
    form = scope.choose((
        "torch.sigmoid({e})", "F.leaky_relu({e})", "torch.exp({e} - {e}.amax())", "F.layer_norm({e}, (8,)).relu()",
    ))  # fmt: skip
    if gates := scope.emit(form.format(e=made)):
        total = scope.emit(f"torch.zeros_like({first}).index_add(0, {end}, {gates} * {second}[{start}])")
        if total and scope.maybe():
            weight = scope.emit(f"torch.zeros_like({first}).index_add(0, {end}, {gates}.abs())")
            scope.emit(f"{total} / ({weight} + 0.1)")


def embedding(scope: Scope) -> None:
    table = scope.parameter((7, 8))
    i = scope.add("i", scope.choose((("n", 5), ("n",))), fill=7, dtype="int64")
    form = scope.choose(("F.embedding({i}, {w})", "{w}[{i}]", "F.embedding({i}, {w}, padding_idx=0)"))
    scope.emit(form.format(i=i, w=table))


LINES = (index, index, along, edges, embedding)
