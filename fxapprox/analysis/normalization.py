"""By which statistics is a value normalized?

Decompositions spell a normalization out as (x - mean) * rstd, with mean and rstd from one ``var_mean`` of x. Both are
kept exactly anyway, so that they can say where the elements of x lie.
"""

from __future__ import annotations

from torch import fx

from fxapprox.codecs.threshold import kept_dims
from fxapprox.ir.arguments import argument
from fxapprox.ir.operators import behind_views, is_plain, op_name
from fxapprox.ir.records import Moments
from fxapprox.ir.tensors import numel, tensor_of

ENOUGH = 8  # elements that a statistic is of, at least


def statistics_of(root: fx.Node, steps: list[tuple]) -> tuple[str | None, str | None]:
    """Names of mean and rstd, if the last two of the steps back to the root normalize it by its own statistics."""
    if len(steps) < 2 or steps[-1][0] != "sub" or steps[-2][0] != "mul":
        return None, None
    mean, rstd = steps[-1][1], steps[-2][1]
    if not isinstance(mean, fx.Node) or not isinstance(rstd, fx.Node):
        return None, None
    if not _is_mean_of(root, mean) or op_name(behind_views(rstd)) != "aten.rsqrt":
        return None, None
    return mean.name, rstd.name


def moments_of(node: fx.Node) -> Moments | None:
    """How the statistics of a normalization over the batch standardize the value: its input, or that less its mean.

    Each channel then has a scale of its own, so that a channel of outliers does no harm to others. A row of a LayerNorm
    has all channels in it, outliers as well, and a group of a GroupNorm many: the group codec follows those better.
    """
    found = _normalization(node)
    if found is not None:
        return Moments(*found)
    if op_name(node) != "aten.sub" or not is_plain(node):
        return None
    x, mean = argument(node, 0), argument(node, 1)
    if not isinstance(x, fx.Node) or not isinstance(mean, fx.Node):
        return None
    found = _normalization(x)  # type: ignore[arg-type]
    if found is None or not _is_mean_of(x, mean) or tensor_of(node).shape != tensor_of(x).shape:  # type: ignore[union-attr]
        return None
    return Moments(None, found[1])


def _normalization(x: fx.Node) -> tuple[str, str] | None:
    """Names of the (mean, rstd) over the batch, of each channel, by which x is normalized."""
    for centred in x.users:
        for scaled in centred.users if op_name(centred) == "aten.sub" and argument(centred, 0) is x else ():
            if op_name(scaled) != "aten.mul":
                continue
            factor = argument(scaled, 1 if argument(scaled, 0) is centred else 0)
            mean, rstd = statistics_of(x, [("mul", factor), ("sub", argument(centred, 1))])
            if mean and rstd and _over_the_batch(x, argument(centred, 1)):
                return mean, rstd
    return None


def _is_mean_of(x: fx.Node, mean: fx.Node) -> bool:
    """Whether the mean is that of a var_mean of x, or of x in another type: autocast takes statistics in float32."""
    source = behind_views(mean)
    made = argument(source, 0) if op_name(source) == "getitem" else None
    if not isinstance(made, fx.Node) or op_name(made) != "aten.var_mean":
        return False
    of = argument(made, 0)
    return of is x or (op_name(of) == "prims.convert_element_type" and argument(of, 0) is x)


def _over_the_batch(x: fx.Node, mean: object) -> bool:
    """Whether the mean is one of each channel, over enough elements of x and over dimension 0."""
    value, small = tensor_of(x), tensor_of(mean) if isinstance(mean, fx.Node) else None
    if value is None or small is None or value.dim() < 2 or numel(small) == 1:
        return False
    sizes = [1] * (value.dim() - small.dim()) + list(small.shape)
    kept = tuple(d for d, size in enumerate(sizes) if not isinstance(size, int) or size != 1)
    return 0 not in kept and kept == kept_dims(value.dim()) and numel(value) >= ENOUGH * numel(small)
