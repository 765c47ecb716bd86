"""Lines that move elements: views, copies, joins, aliases, and changes in place."""

from __future__ import annotations

from tools.fuzz.scope import Scope

VIEWS = (
    "{x}.flatten()", "{x}.reshape(-1, 2)",
    "{x}.unsqueeze(0)", "{x}.unsqueeze(-1)", "{x}.squeeze()", "{x}[0]", "{x}[:2]",
    "{x}[1:]", "{x}[..., 0]", "{x}[..., :2]", "{x}[..., ::2]", "{x}[..., 1:]", "{x}[None]", "{x}.mT", "{x}.flatten(1)",
    "{x}.transpose(0, 1)", "{x}.transpose(0, -1).contiguous()", "{x}.permute(*range({rank} - 1, -1, -1))",
    "{x}.reshape(n, -1)", "{x}.flatten(0, 1)", "{x}.unflatten(-1, (2, -1))", "{x}.expand(2, *[-1] * {rank})",
    "{x}.view({x}.shape)", "{x}.chunk(2, -1)[0]", "{x}.chunk(2, -1)[1]", "{x}.split(1, -1)[0]", "{x}.unbind(-1)[0]",
    "{x}.narrow(-1, 0, 2)", "{x}.select(-1, -1)", "torch.diagonal({x})", "{x}.unfold(-1, 2, 1)", "{x}.view_as({x})",
    "torch.movedim({x}, 0, -1)", "{x}.flip(0)", "torch.roll({x}, 1, 0)", "{x}.repeat(2, *[1] * ({rank} - 1))",
    "{x}.repeat_interleave(2, -1)", "torch.tril({x})", "torch.triu({x}, 1)", "F.pad({x}, (1, 0))", "{x}.tile((2,))",
    "F.one_hot({x}.argmax(-1), {x}.shape[-1]).to({x}.dtype)", "torch.cat([{x}, {x}], -1)",
    "torch.cat([{x}[:2], {x}[2:]])", "torch.stack([{x}, -{x}])", "{x}.rot90()", "torch.cat([{x}, {x}.relu()], 0)",
    "torch.stack({x}.unbind(0)[:2])", "{x}.contiguous(memory_format=torch.channels_last)", "{x}.T",
    "{x}.as_strided(({x}.shape[-1],), (1,))", "torch.broadcast_to({x}[:1], {x}.shape)", "torch.swapaxes({x}, 0, -1)",
)  # fmt: skip
JOINS = (
    "torch.cat([{x}, {y}], -1)", "torch.cat([{x}, {y}])", "torch.stack([{x}, {y}], -1)", "torch.stack([{x}, {y}])",
    "torch.where({x} > 0, {x}, {y})", "torch.hstack([{x}, {y}])", "torch.cdist({x}, {y})", "torch.cross({x}, {y}, -1)",
    "torch.slice_scatter({x}, {y}[:1], 0, 0, 1)", "torch.select_scatter({x}, {y}[0], 0, 1)",
)  # fmt: skip
IN_PLACE = (
    "{x}.mul_(2)", "{x}.add_(1)", "{x}.relu_()", "{x}.clamp_(-1, 1)", "{x}[0].mul_(2)", "{x}[..., :2].add_(1)",
    "{x}.flatten().mul_(0.5)", "{x}.tanh_()", "{x}.sigmoid_()", "{x}.zero_()", "{x}[:1].copy_({x}[1:2])",
    "{x}[..., 0].zero_()", "{x}.neg_()", "{x}.masked_fill_({x} > 1, 0.0)", "{x}.transpose(0, -1).add_(0.5)",
    "F.relu({x}, inplace=True)", "F.dropout({x}, 0.5, inplace=True)", "{x}.sub_({x}.mean())", "{x}.exp_()",
    "{x}.detach().add_(1)", "F.silu({x}, inplace=True)", "{x}.fill_(0.5)", "{x}.add_({x})", "{x}.sqrt_()",
)  # fmt: skip


DECIDED = (
    "torch.relu({x}.reshape(-1)).view({x}.shape)",
    "torch.where(({x} > 0).flatten(), {x}.flatten(), {x}.flatten() * 0.2)",
    "({x} > 0).reshape(-1).to({x}.dtype) * {x}.reshape(-1)", "F.hardswish({x}.unsqueeze(0)).squeeze(0)",
    "F.mish({x}.reshape(-1)).view_as({x})", "{x}.transpose(0, -1).relu().transpose(0, -1)", "F.relu6({x}[None])[0]",
    "torch.where({x}.mT > 0, {x}.mT, {x}.mT.exp())", "F.leaky_relu({x}.flatten(1)).unflatten(1, {x}.shape[1:])",
    "F.prelu({x}.reshape(1, -1), {x}.detach().flatten()[:1]).view({x}.shape)", "F.elu({x}.unsqueeze(-1)).squeeze(-1)",
)  # fmt: skip


def decided(scope: Scope) -> None:
    """A view between a value and the decision on it."""
    if x := scope.pick():
        scope.emit(scope.choose(DECIDED).format(x=x))


def view(scope: Scope) -> None:
    if x := scope.pick():
        scope.emit(scope.choose(VIEWS).format(x=x, rank=scope.values[x].dim()))


def join(scope: Scope) -> None:
    """Of two values of one shape."""
    if x := scope.pick():
        shape = scope.values[x].shape
        y = scope.pick(lambda t: t.is_floating_point() and t.shape == shape)
        scope.emit(scope.choose(JOINS).format(x=x, y=y))


def in_place(scope: Scope) -> None:
    """Changes a value, and what shares memory with it, inputs among them."""
    if x := scope.pick():
        scope.emit(scope.choose(IN_PLACE).format(x=x))


LINES = (view, view, view, decided, join, in_place)
