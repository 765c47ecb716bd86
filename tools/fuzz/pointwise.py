"""Lines that treat each element by itself: functions, arithmetic with broadcasting, comparisons, casts, dropout."""

from __future__ import annotations

import torch

from tools.fuzz.scope import Scope

UNARY = (
    "torch.relu({x})", "{x} * 2", "{x} + 1", "-{x}", "{x}.abs()", "{x}.square()", "{x} ** 3", "{x} / 3", "1 - {x}",
    "torch.tanh({x})", "torch.sigmoid({x})", "torch.sin({x})", "torch.cos({x})", "torch.erf({x})", "torch.atan({x})",
    "torch.exp({x})", "torch.expm1({x})", "torch.exp(-{x}.abs())", "torch.exp2({x})", "torch.asinh({x})",
    "torch.sqrt({x}.abs() + 0.5)", "torch.sqrt({x}.abs())", "torch.rsqrt({x}.square() + 0.1)",
    "torch.log({x}.abs() + 0.1)", "torch.log1p({x}.abs())", "torch.log({x})", "torch.sqrt({x})",
    "{x}.reciprocal()", "1 / (1 + {x}.square())", "({x}.abs() + 0.1) ** 0.3", "torch.sinh({x})", "torch.sinc({x})",
    "F.gelu({x})", "F.gelu({x}, approximate='tanh')", "F.silu({x})", "F.mish({x})", "F.elu({x})", "F.selu({x})",
    "F.celu({x}, 0.5)", "F.softplus({x})", "F.softsign({x})", "F.logsigmoid({x})", "F.tanhshrink({x})",
    "F.leaky_relu({x}, 0.1)", "F.relu6({x})", "F.hardtanh({x})", "F.hardswish({x})", "F.hardsigmoid({x})",
    "F.softshrink({x}, 0.5)", "F.hardshrink({x})", "F.threshold({x}, 0.5, 0.0)", "F.rrelu({x}, training=True)",
    "{x}.clamp(-0.5, 1.0)", "{x}.clamp(min=0.0)", "{x}.clamp(max=0.5)", "torch.sign({x})", "torch.floor({x})",
    "torch.round({x})", "torch.frac({x})", "torch.remainder({x}, 1.5)", "torch.fmod({x}, 1.5)",
    "torch.nan_to_num({x})", "torch.logit(torch.sigmoid({x}), eps=1e-3)",
    "torch.where({x} > 0, {x}, 0.1 * {x})", "torch.where({x} >= 0.5, torch.exp(-{x}), {x})", "{x} * torch.sigmoid({x})",
    "{x} * ({x} > 0)", "{x}.masked_fill({x} < 0, 0.5)", "{x}.detach()", "{x} - {x}.detach()", "{x}.clone()",
    "{x}.float()", "{x}.double()", "{x}.bfloat16()", "F.dropout({x}, 0.5)", "F.dropout({x}, 0.3, training=True)",
    "F.alpha_dropout({x}, 0.4, training=True)", "{x} + torch.randn_like({x})", "{x} * torch.rand_like({x})",
    "torch.bernoulli(torch.sigmoid({x}))", "{x} + torch.ones_like({x})", "{x} * torch.full_like({x}, 0.7)",
)  # fmt: skip
BINARY = (
    "{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} / ({y}.abs() + 0.5)", "{x} / {y}", "torch.maximum({x}, {y})",
    "torch.minimum({x}, {y})", "torch.where({x} > {y}, {x}, {y})", "torch.where({x} > 0, {y}, {x})",
    "{x} * torch.sigmoid({y})", "{x} * ({y} > 0)", "torch.lerp({x}, {y}, 0.3)", "torch.addcmul({x}, {x}, {y})",
    "torch.addcdiv({x}, {y}, {y}.abs() + 0.5)", "torch.atan2({x}, {y})", "torch.hypot({x}, {y})",
    "({x}.abs() + 0.1) ** {y}", "torch.logaddexp({x}, {y})", "torch.xlogy({x}.abs(), {y}.abs() + 0.1)",
    "torch.copysign({x}, {y})", "torch.remainder({x}, {y})", "{x}.masked_fill({y} > 0.5, -1e9)",
    "{x}.masked_fill({y} == 0, 0.0)", "torch.clamp({x}, {y}, {y} + 1)", "F.prelu({x}, {y}.flatten()[:1])",
    "F.mse_loss({x}, {y})", "F.smooth_l1_loss({x}, {y})", "F.l1_loss({x}, {y})", "F.huber_loss({x}, {y}, delta=0.5)",
    "F.binary_cross_entropy_with_logits({x}, torch.sigmoid({y}))", "torch.outer({x}.flatten()[:8], {y}.flatten()[:6])",
    "torch.cosine_similarity({x}, {y}, -1)", "F.kl_div(F.log_softmax({x}, -1), torch.softmax({y}, -1))",
)  # fmt: skip
DECISIONS = (
    "{x} > 0", "{x} >= {x}.mean()", "{x} == 0", "{x} != {x}.round()", "{x}.isfinite()", "~({x} > 0.5)",
    "({x} > 0) & ({x} < 1)", "({x} > 0).long()", "{x}.argmax(-1)", "({x} * 2).long()", "{x}.sum() > 0",
)  # fmt: skip
MASKED = (
    "torch.where({m}, {x}, 0.0)", "{x} * {m}", "torch.where({m}, {x}, -{x})", "{x}.masked_fill({m}, 0.3)",
    "torch.where({m}, torch.tanh({x}), {x})", "{m}.to({x}.dtype)", "{m} & ({x} > 0)", "~{m}", "{m}.sum(-1)",
    "{m}.any(-1)",
)  # fmt: skip


def unary(scope: Scope) -> None:
    if x := scope.pick():
        scope.emit(scope.choose(UNARY).format(x=x))


def binary(scope: Scope) -> None:
    """Of two values that broadcast, or of a value and a parameter of a part of its dimensions."""
    x = scope.pick()
    if x is None:
        return
    shape = scope.values[x].shape
    if scope.choose((False, False, True)):
        y = scope.parameter([size if scope.maybe() else 1 for size in shape[scope.integer(0, len(shape)) :]])
    else:
        y = scope.pick(lambda t: t.is_floating_point() and _broadcast(t.shape, shape))
    scope.emit(scope.choose(BINARY).format(x=x, y=y))


def _broadcast(one: torch.Size, other: torch.Size) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one), reversed(other), strict=False))


def decision(scope: Scope) -> None:
    if x := scope.pick():
        scope.emit(scope.choose(DECISIONS).format(x=x))


def masked(scope: Scope) -> None:
    """A value where a mask is, one of the program's or a new one."""
    x = scope.pick()
    if x is None:
        return
    shape = scope.values[x].shape
    mask = scope.pick(lambda t: t.dtype == torch.bool and _broadcast(t.shape, shape))
    mask = mask or scope.add("m", shape, fill="mask", dtype="bool")
    scope.emit(scope.choose(MASKED).format(x=x, m=mask))


LINES = (unary, unary, unary, binary, binary, decision, masked)
