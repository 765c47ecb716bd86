"""Lines that reduce: sums, means, extrema, variances, norms, scans, softmax."""

from __future__ import annotations

from tools.fuzz.scope import Scope

WHOLE = (
    "{x}.sum()", "{x}.mean()", "{x}.amax()", "{x}.max()", "{x}.var()", "{x}.std()", "{x}.norm()", "{x}.square().mean()",
    "torch.logsumexp({x}.flatten(), 0)", "{x} - {x}.mean()", "{x} / ({x}.norm() + 1e-3)",
    "{x}.nansum()", "{x}.prod()", "{x}.median()",
)  # fmt: skip
ALONG = (
    "{x}.sum({d})", "{x}.sum({d}, keepdim=True)", "{x}.mean({d})", "{x}.mean({d}, keepdim=True)", "{x}.amax({d})",
    "{x}.amin({d}, keepdim=True)", "{x}.max({d}).values", "{x}.max({d}, keepdim=True).values", "{x}.min({d}).values",
    "{x}.var({d})", "{x}.var({d}, correction=0, keepdim=True)", "{x}.std({d}, keepdim=True)",
    "torch.var_mean({x}, {d})[0]", "torch.logsumexp({x}, {d})", "torch.logsumexp({x}, {d}, keepdim=True)",
    "{x}.cumsum({d})", "torch.cumprod({x}, {d})", "torch.logcumsumexp({x}, {d})", "torch.cummax({x}, {d}).values",
    "torch.softmax({x}, {d})", "torch.softmax({x} * 3, {d})", "F.log_softmax({x}, {d})", "F.softmin({x}, {d})",
    "{x} - {x}.mean({d}, keepdim=True)", "{x} - {x}.amax({d}, keepdim=True)", "{x} / {x}.norm(dim={d}, keepdim=True)",
    "F.normalize({x}, dim={d})", "torch.linalg.vector_norm({x}, 1, {d})", "{x}.norm(dim={d})", "{x}.prod({d})",
    "torch.sort({x}, {d}).values", "torch.topk({x}, 2, {d}).values", "torch.diff({x}, dim={d})",
    "({x} - {x}.mean({d}, keepdim=True)) * torch.rsqrt({x}.var({d}, keepdim=True) + 1e-3)", "F.glu({x}, {d})",
    "torch.sort({x}, dim={d}, stable=True).values", "torch.sort({x}, stable=True, dim={d}, descending=True).values",
    "{x}.gather({d}, torch.argsort({x}, dim={d}, stable=True))", "torch.topk({x}, k=1, dim={d}, largest=False).values",
    "torch.take_along_dim({x}, torch.argsort({x}, descending=True, dim={d}), dim={d})", "{x}.kthvalue(1, {d}).values",
    "torch.zeros_like({x}).scatter(src={x}, index=torch.argsort({x}, stable=True, dim={d}), dim={d})",
    "torch.topk({x}, 2, dim={d}, sorted=False).values", "{x}.gather(index={x}.topk(1, {d}).indices, dim={d})",
    "{x}.abs().sum({d})", "torch.renorm({x}, 2, 0, 1.0)", "{x}.median({d}).values", "torch.quantile({x}, 0.5, {d})",
)  # fmt: skip


def whole(scope: Scope) -> None:
    if x := scope.pick():
        scope.emit(scope.choose(WHOLE).format(x=x))


def along(scope: Scope) -> None:
    if x := scope.pick(lambda t: t.is_floating_point() and t.dim() > 0):
        dim = scope.integer(-1, scope.values[x].dim() - 2)
        scope.emit(scope.choose(ALONG).format(x=x, d=dim))


LINES = (along, along, along, whole)
