"""Several lines at once, in the order in which models have them."""

from __future__ import annotations

from tools.fuzz.layers import images, matrix
from tools.fuzz.scope import Scope

ACTIVATIONS = (
    "torch.relu({x})", "F.gelu({x})", "F.silu({x})", "F.hardswish({x})", "torch.tanh({x})", "F.relu6({x})",
    "F.mish({x})", "F.elu({x})", "F.softplus({x})", "F.leaky_relu({x}, 0.01)",
)  # fmt: skip


def chain(scope: Scope, x: str, *texts: str) -> str | None:
    """Lines of which each reads the one before, as ``{x}``."""
    last: str | None = x
    for text in texts:
        last = scope.emit(text.format(x=last)) if last else None
    return last


def residual(scope: Scope) -> None:
    """A normalization and two linear layers beside a shortcut."""
    if x := matrix(scope):
        width = scope.values[x].shape[-1]
        made = chain(
            scope, x,
            f"F.layer_norm({{x}}, ({width},), {scope.parameter((width,))})",
            f"F.linear({{x}}, {scope.parameter((16, width))}, {scope.parameter((16,))})",
            scope.choose(ACTIVATIONS),
            f"F.dropout(F.linear({{x}}, {scope.parameter((width, 16))}), 0.2)",
        )  # fmt: skip
        if made:
            scope.emit(f"{x} + {made}")


def convolutions(scope: Scope) -> None:
    """Convolution, BatchNorm, activation, and a convolution that reads it."""
    x = images(scope)
    channels = scope.values[x].shape[1]
    mean, var = scope.add("b", (8,)), scope.add("b", (8,), fill="positive")
    chain(
        scope, x,
        f"F.conv2d({{x}}, {scope.parameter((8, channels, 3, 3))}, padding=1)",
        f"F.batch_norm({{x}}, {mean}, {var}, {scope.parameter((8,))}, {scope.parameter((8,))}, training=True)",
        scope.choose(ACTIVATIONS),
        f"F.conv2d({{x}}, {scope.parameter((channels, 8, 1, 1))})",
        scope.choose((f"{{x}} + {x}", "torch.relu({x})", "F.max_pool2d({x}, 2)")),
    )  # fmt: skip


def gated(scope: Scope) -> None:
    """A product of two projections, one of them through an activation."""
    if x := matrix(scope):
        width = scope.values[x].shape[-1]
        up, gate = (scope.emit(f"F.linear({x}, {scope.parameter((16, width))})") for _ in range(2))
        if up and gate:
            chain(scope, gate, scope.choose(ACTIVATIONS), f"{{x}} * {up}", f"{{x}} @ {scope.parameter((16, 4))}")


def rectified(scope: Scope) -> None:
    """Linear layer, normalization, rectifier, linear layer, of rows or tokens."""
    if x := matrix(scope):
        width = scope.values[x].shape[-1]
        norm = scope.choose((
            f"F.layer_norm({{x}}, (32,), {scope.parameter((32,))}, {scope.parameter((32,))})",
            f"F.rms_norm({{x}}, (32,), {scope.parameter((32,))})", "F.layer_norm({x}, (32,))",
            f"F.batch_norm({{x}}, None, None, {scope.parameter((32,))}, training=True)", "{x}",
        ))  # fmt: skip
        slope = f"F.prelu({{x}}, {scope.parameter((1,), fill='positive')})"
        chain(
            scope, x, f"F.linear({{x}}, {scope.parameter((32, width))})", norm, scope.choose((slope, *ACTIVATIONS)),
            f"F.linear({{x}}, {scope.parameter((4, 32))})",
        )  # fmt: skip


LINES = (residual, convolutions, gated, rectified)
