"""torch.utils.checkpoint in a model: its regions are computed again, exactly, random numbers from their seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import fxapprox
from tools.zoo.training import relative

X = torch.randn(256, 64)


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module], dropout: float, context: Any) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(64, 64), nn.Linear(64, 64), norm(64)
        self.dropout, self.context = nn.Dropout(dropout), context

    def inside(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.second(F.relu(self.norm(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        if self.context is None:
            return self.inside(x)
        return checkpoint(self.inside, x, use_reentrant=False, **self.context)  # type: ignore[return-value]


def network(context: Any, norm: type[nn.Module] = nn.BatchNorm1d, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = (Block(norm, dropout, context) for _ in range(3))
    return nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 4))


def trained(model: nn.Module, **options: Any) -> tuple[Tensor, list[Tensor], fxapprox.Report]:
    """(loss, gradients and buffers, report) of one step."""
    torch.compiler.reset()
    torch.manual_seed(5)
    compiled = fxapprox.compile(model, strict=True, min_bytes=0, **{"lowering": "eager", **options})
    loss = compiled(X).square().mean()
    loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None] + list(model.buffers())
    (report,) = fxapprox.reports(compiled)
    return loss.detach(), found, report


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_gradients_are_those_of_exact_mode_without_checkpoints(
    norm: type[nn.Module], dropout: float, bits: int | None
) -> None:
    plain = trained(network(None, norm, dropout), bits=None)
    again = trained(network({}, norm, dropout), bits=bits)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_only_the_inputs_of_regions_and_seeds_are_stored(bits: int | None) -> None:
    report = trained(network({}, dropout=0.3), bits=bits)[2]
    stored = [(d.storage, d.bytes_after) for d in report.decisions if d.bytes_after]
    assert stored == [("exact", X.numel() * 4)] * 3 + [("exact", 8)] * 3
    assert report.saved_bytes <= report.baseline_bytes


def save_products(_: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    saved = operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


def test_a_selective_policy_is_honoured() -> None:
    context = {"context_fn": partial(create_selective_checkpoint_contexts, save_products)}
    plain = trained(network(None), bits=None)
    again = trained(network(context), bits=None)
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))
    saved = {d.value.split("_")[0] for d in again[2].decisions if d.bytes_after > 1000}
    assert saved <= {"addmm", "add", "mm"}


@pytest.mark.inductor
@pytest.mark.parametrize("bits", [None, 8])
def test_dropout_in_a_region_repeats_under_inductor(bits: int | None) -> None:
    plain = trained(network(None, dropout=0.3), bits=None, lowering="inductor")
    again = trained(network({}, dropout=0.3), bits=bits, lowering="inductor")
    assert torch.equal(plain[0], again[0])
    for a, b in zip(plain[1], again[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Dropped(nn.Module):
    """Its gradient is known: forward's mask can be read off its output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 512))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda y: F.dropout((y @ self.weight).sin(), 0.4), x, use_reentrant=False)  # type: ignore[return-value]


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("lowering", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_backward_of_dropout_in_a_region_takes_the_mask_of_forward(lowering: str, bits: int | None) -> None:
    model = Dropped()
    compiled = fxapprox.compile(model, bits=bits, lowering=lowering, strict=True)
    for _ in range(2):
        model.weight.grad = None
        y = compiled(X)
        y.sum().backward()
        product = (X @ model.weight).detach()
        expected = X.T @ (torch.where(y != 0, 1 / 0.6, 0.0) * product.cos())
        torch.testing.assert_close(model.weight.grad, expected, rtol=1e-4, atol=1e-3)
    (report,) = fxapprox.reports(compiled)
    assert report.saved_bytes == report.baseline_bytes == 8


def test_the_budget_of_torch_has_no_effect_and_a_warning_says_so() -> None:
    compiled = fxapprox.compile(network(None), bits=8, lowering="eager")
    with functorch_config.patch(activation_memory_budget=0.5), pytest.warns(UserWarning, match="memory_budget=0.5 has"):
        compiled(X).sum().backward()


# --- values that go from one region into another ---------------------------------------------------


class Regions(nn.Module):
    """Three blocks of attention and an MLP, each in a region unless told otherwise; a kind says what they share."""

    def __init__(self, kind: Kind, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.table = nn.Linear(64, 64), nn.Embedding(32, 64)
        self.qkv = nn.ModuleList(nn.Linear(64, 192) for _ in range(3))
        self.wide = nn.ModuleList(nn.Linear(64, 256) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Linear(256, 64) for _ in range(3))
        self.kind, self.again = kind, again

    def run(self, function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, **how) if self.again else function(*args)

    def mlp(self, i: int, x: Tensor) -> Tensor:
        return x + self.narrow[i](F.gelu(self.wide[i](x)))

    def block(self, i: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in self.qkv[i](x).chunk(3, -1))
        return self.mlp(i, x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(self, self.first(x))


Kind = Callable[[Regions, Tensor], Tensor]
KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


def chained(function: Callable[..., Any], net: Regions, *values: Tensor) -> Tensor:
    """Three regions, each of which takes what the one before gives."""
    for i in range(3):
        values = net.run(partial(function, net, i), *values)
    return values[0]


def each(function: Callable[..., Tensor], net: Regions, x: Tensor, *shared: Tensor) -> Tensor:
    """Three regions that share the other values."""
    for i in range(3):
        x = net.run(partial(function, net, i), x, *shared)
    return x


@kind
def blocks(net: Regions, x: Tensor) -> Tensor:
    return each(Regions.block, net, x)


@kind
def views_of_positions(net: Regions, x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[1])[:, None] * torch.linspace(1, 0.01, 64)
    return each(lambda net, i, x, c: net.mlp(i, x * c.unsqueeze(0).expand(2, -1, -1)[0]), net, x, angle.cos())


@kind
def views_of_a_region(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        x = net.mlp(i, x * turned.transpose(1, 2))
        return x, x.transpose(1, 2)

    return chained(run, net, x, x.transpose(1, 2))


@kind
def results_that_are_views(net: Regions, x: Tensor) -> Tensor:
    return each(lambda net, i, x: net.narrow[i](F.relu(net.wide[i](F.relu(x)))), net, x)


@kind
def chunks(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        x = net.mlp(i, x * q + k.tanh() * v)
        return (x, *net.qkv[i](x).chunk(3, -1))

    return chained(run, net, x, x, x, x)


@kind
def slices_that_overlap(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        x = net.mlp(i, x + F.pad(p, (0, 16)) * F.pad(q, (16, 0)))
        return x, x[..., :48], x[..., 16:]

    return chained(run, net, x, x[..., :48], x[..., 16:])


@kind
def weights_cast(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, _: int, x: Tensor) -> Tensor:
        return x + F.linear(
            F.gelu(F.linear(x.bfloat16(), net.wide[0].weight.bfloat16())), net.narrow[0].weight.bfloat16()
        )

    return each(run, net, x)


@kind
def masks_made_once(net: Regions, x: Tensor) -> Tensor:
    mask = torch.full((x.shape[1], x.shape[1]), torch.finfo(x.dtype).min).triu(1)[None, None]
    return each(lambda net, i, x, mask: net.block(i, x, mask[:, :, : x.shape[1]]), net, x, mask)


@kind
def masks_made_in_each(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        return net.block(i, x, torch.where(places[:, None] >= places, 0.0, -1e9))

    return each(run, net, x)


@kind
def masks_of_the_data(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor, seen: Tensor) -> Tensor:
        return net.block(i, x, seen[:, None, None, :].expand(-1, 1, x.shape[1], -1))

    return each(run, net, x, x.mean(-1) > -1)


@kind
def shared_embeddings(net: Regions, x: Tensor) -> Tensor:
    return each(lambda net, i, x, at: net.mlp(i, x + net.table(at)), net, x, torch.arange(x.shape[1]) % 32)


@kind
def indices_of_a_region(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        x = net.mlp(i, x + net.table(at))
        return x, x.argmax(-1) % 32

    return chained(run, net, x, torch.zeros(x.shape[:2], dtype=torch.long))


@kind
def states_of_an_encoder(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor, states: Tensor) -> Tensor:
        k, v = net.qkv[i](states)[..., 64:].chunk(2, -1)
        return net.mlp(i, x + F.scaled_dot_product_attention(x, k, v))

    return each(run, net, x, net.run(partial(net.mlp, 0), x))


@kind
def nested(net: Regions, x: Tensor) -> Tensor:
    return each(lambda net, i, x: net.run(partial(net.mlp, i), net.mlp(i, x)) * 2, net, x)


@kind
def dropout(net: Regions, x: Tensor) -> Tensor:
    return each(lambda net, i, x: F.dropout(net.mlp(i, F.dropout(x, 0.1)), 0.2), net, x)


@kind
def without_random_state(net: Regions, x: Tensor) -> Tensor:
    for i in range(3):
        x = net.run(lambda x, i=i: F.dropout(net.mlp(i, x), 0.2), x, preserve_rng_state=False, early_stop=False)
    return x


@kind
def a_mask_of_dropout_for_all(net: Regions, x: Tensor) -> Tensor:
    return each(lambda net, i, x, m: net.mlp(i, x * m), net, x, F.dropout(torch.ones_like(x), 0.3))


@kind
def statistics(net: Regions, x: Tensor) -> Tensor:
    def run(net: Regions, i: int, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = net.mlp(i, F.layer_norm(x, (64,)) * scale)
        return x, x.square().mean(-1, keepdim=True).add(1e-5).rsqrt()

    return chained(run, net, x, x.square().mean(-1, keepdim=True).add(1e-5).rsqrt())


@kind
def every_other(net: Regions, x: Tensor) -> Tensor:
    for i in range(3):
        x = net.mlp(i, x) if i == 1 else net.run(partial(net.mlp, i), x)
    return x


def policies(name: str, policy: CheckpointPolicy, *parts: str) -> None:
    def choose(_: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return policy if any(part in str(operator) for part in parts) else CheckpointPolicy.PREFER_RECOMPUTE

    def run(net: Regions, x: Tensor) -> Tensor:
        how = {"context_fn": partial(create_selective_checkpoint_contexts, choose)} if net.again else {}
        for i in range(3):
            x = net.run(lambda x, i=i: net.block(i, F.layer_norm(x, (64,))), x, **how)
        return x

    KINDS[name] = run


policies("policy_of_products", CheckpointPolicy.MUST_SAVE, "aten.mm", "aten.addmm")
policies("policy_of_attention", CheckpointPolicy.MUST_SAVE, "attention")
policies("policy_of_views", CheckpointPolicy.MUST_SAVE, "aten.view", "aten.transpose", "aten.t.")
policies("policy_of_everything", CheckpointPolicy.MUST_SAVE, "aten")
policies("policy_that_prefers", CheckpointPolicy.PREFER_SAVE, "aten.addmm", "aten.gelu")


def stepped(net: nn.Module, x: Tensor, **options: Any) -> tuple[list[Tensor], fxapprox.Report]:
    """(loss and gradients, report) of one step; a graph that falls back raises."""
    torch.compiler.reset()
    torch.manual_seed(5)
    compiled = fxapprox.compile(net, lowering="eager", min_bytes=0, strict=True, **options)
    loss = (compiled(x) * torch.linspace(0.5, 1.5, 64)).square().mean()
    loss.backward()
    (report,) = fxapprox.reports(compiled)
    return [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)], report


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", KINDS)
def test_whatever_goes_from_region_to_region_costs_no_graph_and_no_more_than_plain(name: str) -> None:
    x = torch.randn(2, 16, 64)
    expected, _ = stepped(Regions(KINDS[name], again=False), x, bits=None)
    found, exact = stepped(Regions(KINDS[name], again=True), x, bits=None)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    _, coded = stepped(Regions(KINDS[name], again=True), x, bits=4)
    assert exact.fallback == coded.fallback == ""
    assert coded.saved_bytes <= exact.saved_bytes <= exact.baseline_bytes


def test_what_a_policy_saves_is_coded() -> None:
    x = torch.randn(2, 16, 64)
    expected, exact = stepped(Regions(KINDS["policy_of_products"], again=True), x, bits=None)
    found, coded = stepped(Regions(KINDS["policy_of_products"], again=True), x, bits=4)
    assert exact.saved_bytes > 3 * coded.saved_bytes
    assert 0 < error(found, expected) < 0.1


# --- checkpoint_bits: what goes into regions is coded ---------------------------------------------


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative, of the gradients; the loss is the same."""
    assert torch.equal(found[0], expected[0])
    gradients = [torch.cat([g.flatten() for g in each[1:]]) for each in (found, expected)]
    return relative(*gradients)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", KINDS)
def test_whatever_goes_into_regions_can_be_coded(name: str) -> None:
    x = torch.randn(2, 16, 64)
    expected, exact = stepped(Regions(KINDS[name], again=True), x, bits=None)
    found, coded = stepped(Regions(KINDS[name], again=True), x, bits=8, checkpoint_bits=8)
    assert error(found, expected) < 0.02
    assert coded.saved_bytes < 0.75 * exact.saved_bytes


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("checkpoint_bits", [8, 4])
def test_inputs_of_regions_get_the_bits_asked_for(bits: int | None, checkpoint_bits: int) -> None:
    net, x = Regions(lambda net, x: each(lambda net, i, x: net.mlp(i, x), net, x), again=True), torch.randn(2, 16, 64)
    expected, exact = stepped(net, x, bits=None)
    expected = [g.clone() for g in expected]
    net.zero_grad()
    found, coded = stepped(net, x, bits=bits, checkpoint_bits=checkpoint_bits)
    assert error(found, expected) < (0.01 if checkpoint_bits == 8 else 0.1)
    assert {d.bits for d in coded.decisions if d.bytes_after > 1000} == {checkpoint_bits}
    assert coded.saved_bytes < exact.saved_bytes * checkpoint_bits / 32 * 1.25


@pytest.mark.parametrize("rectify", [F.relu, F.relu6, F.hardtanh, lambda x: F.dropout(F.relu(x), 0.2)])
def test_decisions_in_a_region_are_those_of_forward(rectify: Callable[[Tensor], Tensor]) -> None:
    """Behind the rectifier all is linear, so the gradient of the bias before it tells of decisions alone."""

    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.decided, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            run = lambda x: self.last(rectify(self.decided(x)))  # noqa: E731
            return checkpoint(run, self.first(x).tanh().sin(), use_reentrant=False)  # type: ignore[return-value]

    def gradient(**options: Any) -> tuple[Tensor, fxapprox.Report]:
        torch.compiler.reset()
        torch.manual_seed(1)
        model = Deciding()
        compiled = fxapprox.compile(model, lowering="eager", strict=True, min_bytes=0, **options)
        (compiled(X) * torch.linspace(-1, 1, 64)).sum().backward()
        assert model.decided.bias.grad is not None
        return model.decided.bias.grad, fxapprox.reports(compiled)[0]

    expected, exact = gradient(bits=None)
    found, coded = gradient(bits=4, checkpoint_bits=4)
    assert torch.equal(found, expected)
    assert coded.saved_bytes < 0.6 * exact.saved_bytes


def test_bits_for_boundaries_where_there_are_none_warn() -> None:
    with pytest.warns(UserWarning, match="checkpoint_bits has nothing to work on"):
        fxapprox.explain(network(None), X, checkpoint_bits=8)
