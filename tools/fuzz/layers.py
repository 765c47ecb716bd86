"""Lines that layers are made of: products, convolutions, normalizations, pooling, attention, losses."""

from __future__ import annotations

from torch import Tensor

from tools.fuzz.scope import Scope


def images(scope: Scope) -> str:
    """A value of (batch, channels, height, width): one that is there, or a new input."""
    found = scope.pick(lambda t: _is_image(t))
    if found is None or scope.choose((False, False, False, True)):
        shape = scope.choose((("n", 4, 4, 4), ("n", 4, "h", "w")))
        found = scope.add("x", shape, grad=scope.maybe(), turned=scope.maybe())
    return found


def _is_image(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() == 4 and min(value.shape[2:]) >= 2


def matrix(scope: Scope) -> str | None:
    """A value with two dimensions or more."""
    return scope.pick(lambda t: t.is_floating_point() and t.dim() >= 2)


def linear(scope: Scope) -> None:
    if x := matrix(scope):
        width, out = scope.values[x].shape[-1], scope.choose((8, 4, 16))
        weight = scope.parameter((out, width))
        bias = f", {scope.parameter((out,))}" if scope.maybe() else ""
        scope.emit(f"F.linear({x}, {weight}{bias})")


def matmul(scope: Scope) -> None:
    """Of a value with a parameter, or with another value."""
    x = matrix(scope)
    if x is None:
        return
    width = scope.values[x].shape[-1]
    y = scope.pick(lambda t: t.is_floating_point() and t.dim() >= 2 and t.shape[-1] == width)
    w = scope.parameter((width, scope.choose((8, 5))))
    form = scope.choose(("{x} @ {w}", "{x} @ {y}.mT", "torch.matmul({x}, {y}.transpose(-1, -2)) * 0.3",
                         "torch.einsum('...i,ij->...j', {x}, {w})", "{x}.mT @ {x}", "torch.bmm({x}, {x}.mT)",
                         "{x} @ {w}[:, 0]", "torch.addmm({w}[:1], {x}, {w})", "torch.baddbmm({x}, {x}, {x}.mT @ {x})",
                         "torch.chain_matmul({x}, {w})"))  # fmt: skip
    scope.emit(form.format(x=x, y=y, w=w))


def conv2d(scope: Scope) -> None:
    x = images(scope)
    channels, out = scope.values[x].shape[1], scope.choose((4, 8))
    groups = 2 if channels % 2 == 0 and scope.maybe() else 1
    weight = scope.parameter((out, channels // groups, *scope.choose(((3, 3), (1, 1), (2, 2)))))
    bias = scope.choose(("None", scope.parameter((out,)))) if scope.maybe() else "None"
    rest = f"stride={scope.integer(1, 2)}, padding={scope.integer(0, 1)}, groups={groups}"
    made = scope.emit(f"F.conv2d({x}, {weight}, {bias}, {rest})")
    if made and scope.maybe():
        _norm(scope, made)


def transposed(scope: Scope) -> None:
    x = images(scope)
    weight = scope.parameter((scope.values[x].shape[1], 4, 2, 2))
    scope.emit(f"F.conv_transpose2d({x}, {weight}, stride={scope.integer(1, 2)})")


def conv1d(scope: Scope) -> None:
    if x := scope.pick(lambda t: t.is_floating_point() and t.dim() == 3):
        weight = scope.parameter((4, scope.values[x].shape[1], 3))
        scope.emit(f"F.conv1d({x}, {weight}, padding={scope.integer(0, 2)})")


def norm(scope: Scope) -> None:
    x = images(scope) if scope.maybe() else matrix(scope)
    if x is not None:
        _norm(scope, x)


def _norm(scope: Scope, x: str) -> None:
    """A normalization, and a rectifier after it mostly."""
    kind = scope.choose(("batch", "layer", "group", "rms", "instance", "eval"))
    shape = scope.values[x].shape
    channels = shape[-1] if kind in ("layer", "rms") else shape[1]
    weight, bias = (scope.parameter((channels,)) if scope.maybe() else "None" for _ in range(2))
    statistics = ""
    if kind == "eval" or (kind == "batch" and scope.maybe()):
        # buffers, which training changes in place
        mean, var = scope.add("b", (channels,)), scope.add("b", (channels,), fill="positive")
        statistics = f"{mean}, {var}"
    text = {
        "batch": f"F.batch_norm({x}, {statistics or 'None, None'}, {weight}, {bias}, training=True)",
        "eval": f"F.batch_norm({x}, {statistics}, {weight}, {bias})",
        "layer": f"F.layer_norm({x}, ({channels},), {weight}, {bias})",
        "rms": f"F.rms_norm({x}, ({channels},), {weight})",
        "group": f"F.group_norm({x}, 2, {weight}, {bias})",
        "instance": f"F.instance_norm({x}, weight={weight}, bias={bias})",
    }[kind]
    made = scope.emit(text)
    if made:
        scope.emit(scope.choose(("torch.relu({x})", "F.leaky_relu({x})", "F.hardswish({x})", "F.silu({x})",
                                 "F.gelu({x})", "{x}.clamp(-1, 1)", "{x} + 1")).format(x=made))  # fmt: skip


POOLS = (
    "F.max_pool2d({x}, 2)", "F.avg_pool2d({x}, 2)", "F.max_pool2d({x}, 3, 1, 1)", "F.max_pool2d({x}, 2, 2, dilation=1)",
    "F.avg_pool2d({x}, 3, 1, 1)", "F.adaptive_avg_pool2d({x}, 2)", "F.adaptive_avg_pool2d({x}, 1)",
    "F.adaptive_max_pool2d({x}, 2)", "F.interpolate({x}, scale_factor=2.0)", "F.pad({x}, (1, 1, 0, 1))",
    "F.interpolate({x}, scale_factor=2.0, mode='bilinear')", "F.pad({x}, (1, 1, 1, 1), mode='reflect')",
    "F.pixel_shuffle({x}, 2)", "F.unfold({x}, 2)", "F.max_pool1d({x}.flatten(1, 2), 2)", "F.channel_shuffle({x}, 2)",
    "F.avg_pool1d({x}.flatten(1, 2), 2)", "F.lp_pool2d({x}.abs() + 0.1, 2, 2)", "F.dropout2d({x}, 0.5)",
    "F.local_response_norm({x}, 2)", "F.grid_sample({x}, torch.tanh({x}[:, :2].permute(0, 2, 3, 1)))",
)  # fmt: skip


def pool(scope: Scope) -> None:
    scope.emit(scope.choose(POOLS).format(x=images(scope)))


def attention(scope: Scope) -> None:
    """Self-attention of a sequence, fused or written out.

    Scores are below 100: of thousands, their errors in backward are beyond what an exponential can hold.
    """
    x = scope.pick(lambda t: t.is_floating_point() and t.dim() == 3)
    x = x or scope.add("x", ("n", 5, 8), grad=scope.maybe())
    width = scope.values[x].shape[-1]
    q, k, v = (scope.emit(f"torch.tanh({x}) @ {scope.parameter((width, 8))}") for _ in range(3))
    if q and k and v:
        form = scope.choose((
            "F.scaled_dot_product_attention({q}, {k}, {v})",
            "F.scaled_dot_product_attention({q}[:, None], {k}[:, None], {v}[:, None], is_causal=True)",
            "F.scaled_dot_product_attention({q}[:, None], {k}[:, None], {v}[:, None], dropout_p=0.2)",
            "torch.softmax({q} @ {k}.mT * 0.3, -1) @ {v}",
            "F.dropout(torch.softmax(({q} @ {k}.mT).masked_fill({q} @ {k}.mT < 0, -1e9), -1), 0.2) @ {v}",
        ))  # fmt: skip
        scope.emit(form.format(q=q, k=k, v=v))


def loss(scope: Scope) -> None:
    """Of rows of scores and classes."""
    if x := scope.pick(lambda t: t.is_floating_point() and t.dim() == 2):
        rows, classes = scope.values[x].shape
        target = scope.add("t", ("n" if rows == 6 else rows,), fill=classes, dtype="int64")
        form = scope.choose(("F.cross_entropy({x}, {t})", "F.cross_entropy({x}, {t}, label_smoothing=0.1)",
                             "F.nll_loss(F.log_softmax({x}, -1), {t})", "F.multi_margin_loss({x}, {t})",
                             "F.cross_entropy({x}, {t}, reduction='none')"))  # fmt: skip
        scope.emit(form.format(x=x, t=target))


def slope(scope: Scope) -> None:
    """A rectifier with a learned slope, one for all or one for each channel."""
    if x := scope.pick(lambda t: t.is_floating_point() and t.dim() > 0):
        shape = scope.values[x].shape
        channels = shape[1] if len(shape) > 1 and scope.maybe() else 1
        scope.emit(f"F.prelu({x}, {scope.parameter((channels,), fill='positive')})")


CAST = (
    "F.linear({x}.bfloat16(), {w}.bfloat16())", "F.linear({x}.bfloat16(), {w}.bfloat16()).float()",
    "{x}.bfloat16() @ {w}.bfloat16().mT", "F.linear({x}, {w}.to({x}.dtype))",
    "F.linear({x}.half(), {w}.half()).float()",
)  # fmt: skip


def cast(scope: Scope) -> None:
    """A product as autocast makes it: float32 weights in half the bits."""
    if x := matrix(scope):
        weight = scope.add("w", (scope.choose((8, 32)), scope.values[x].shape[-1]), dtype="float32", grad=True)
        scope.emit(scope.choose(CAST).format(x=x, w=weight))


LINES = (
    linear, linear, matmul, matmul, conv2d, conv2d, conv1d, norm, norm, norm, slope, slope, cast, pool, attention, loss,
    transposed,
)  # fmt: skip
