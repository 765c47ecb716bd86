"""torch.compile's own settings, and what else may be compiled: modes, graph breaks, losses, optimizers, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from tests.training_loops.beside import Compile, Seen, assert_same, check, gradients, mlp, run, slow, step

BATCH = 64


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_modes(mode: str) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        compiled, x = compile(model, mode=mode), torch.randn(BATCH, 32)
        seen = [step(model, compiled, x) for _ in range(3)]
        return Seen([e for s in seen for e in s.exact], seen[-1].close)

    check(loop, lowering="inductor")


@pytest.mark.slow
@pytest.mark.inductor
def test_options_of_inductor() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        compiled = compile(model, options={"epilogue_fusion": False, "cpp.threads": 1})
        return step(model, compiled, torch.randn(BATCH, 32))

    check(loop, lowering="inductor")


@pytest.mark.parametrize("by_name", [True, False])
def test_modes_and_options_that_do_not_exist(by_name: bool) -> None:
    def compiled(**settings: object) -> object:
        if by_name:
            return torch.compile(mlp(), backend="fxapprox", **settings)(torch.randn(BATCH, 32))  # type: ignore[call-overload]
        return fxapprox.compile(mlp(), **settings)  # type: ignore[arg-type]

    with pytest.raises(fxapprox.OptionError, match="mode='fastest'"):
        compiled(mode="fastest")
    with pytest.raises(fxapprox.OptionError, match="unknown option 'epilogue_fusoin'; did you mean 'epilogue_fusion'"):
        compiled(options={"epilogue_fusoin": False})


class Broken(nn.Module):
    """Values cross a graph break: one that is needed again, one that is a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.first(x))
        view = h[:, :64].view(-1, 2, 32).transpose(0, 1)
        torch._dynamo.graph_break()
        return self.third(torch.tanh(self.second(h)) * view.transpose(0, 1).reshape(-1, 64))


def test_values_cross_a_graph_break() -> None:
    def loop(compile: Compile) -> Seen:
        model = Broken()
        return step(model, compile(model), torch.randn(BATCH, 32, requires_grad=True))

    assert len(check(loop)) == 2


def test_fullgraph() -> None:
    def loop(compile: Compile) -> Seen:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
            compile(Broken(), fullgraph=True)(torch.randn(BATCH, 32))
        model = mlp()
        return step(model, compile(model, fullgraph=True), torch.randn(BATCH, 32))

    check(loop)


def test_a_branch_on_a_value() -> None:
    class Gated(Broken):
        def forward(self, x: Tensor) -> Tensor:
            h = F.gelu(self.first(x))
            return self.third(torch.tanh(self.second(h)) if h.mean() > -10 else h)

    def loop(compile: Compile) -> Seen:
        model = Gated()
        return step(model, compile(model), torch.randn(BATCH, 32))

    check(loop)


def test_a_loss_compiled_with_the_model() -> None:
    def loop(compile: Compile) -> Seen:
        model, labels = mlp(), torch.randint(8, (BATCH,))

        def loss_of(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            scores = model(x)
            return F.cross_entropy(scores, labels, label_smoothing=0.1), (scores.argmax(1) == labels).float().mean()

        loss, accuracy = compile(loss_of, fullgraph=True)(torch.randn(BATCH, 32), labels)
        loss.backward()
        return Seen([loss.detach(), accuracy], gradients(model))

    check(loop)


LOSSES = {
    "cross entropy": lambda y, t: F.cross_entropy(y, t.argmax(1)),
    "binary": lambda y, t: F.binary_cross_entropy_with_logits(y, t.sigmoid()),
    "huber": lambda y, t: F.huber_loss(y, t),
    "divergence": lambda y, t: F.kl_div(y.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean"),
    "cosine": lambda y, t: 1 - F.cosine_similarity(y, t).mean(),
    "contrastive": lambda y, t: F.cross_entropy(F.normalize(y) @ F.normalize(t).T, torch.arange(BATCH)),
}


@pytest.mark.parametrize("name", ["contrastive", *slow("cross entropy", "binary", "huber", "divergence", "cosine")])
def test_only_the_loss_is_compiled(name: str) -> None:
    loss = LOSSES[name]

    def loop(compile: Compile) -> Seen:
        y, t = torch.randn(BATCH, 64, requires_grad=True), torch.randn(BATCH, 64)
        value = compile(loss)(y, t)
        value.backward()
        return Seen([value.detach()], gradients(y))

    check(loop)


@pytest.mark.parametrize("kind", [torch.optim.SGD, *slow(torch.optim.AdamW)])
def test_an_optimizer_compiled_by_itself(kind: type[torch.optim.Optimizer]) -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        optimizer = kind(model.parameters(), lr=torch.tensor(0.01))  # type: ignore[call-arg]
        compiled, update = compile(model), compile(optimizer.step)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            losses.append(step(model, compiled, torch.randn(BATCH, 32)).exact[0])
            update()
        return Seen(losses[:1], [*losses, *gradients(model)])

    assert len(check(loop)) == 1  # an optimizer's step stores nothing


def test_a_whole_step_compiled() -> None:
    """Backward inside of what is compiled: Dynamo breaks there, and compiles the forward by itself."""

    def loop(compile: Compile) -> Seen:
        model = mlp()

        def whole(x: Tensor) -> Tensor:
            loss = model(x).square().mean()
            loss.backward()
            return loss.detach()

        loss = compile(whole)(torch.randn(BATCH, 32))
        return Seen([loss], gradients(model))

    check(loop)


def test_compiled_autograd() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        compiled, x = compile(model), torch.randn(BATCH, 32)

        def train(x: Tensor) -> Tensor:
            loss = compiled(x).square().mean()
            loss.backward()
            return loss.detach()

        with torch._dynamo.config.patch(compiled_autograd=True):
            loss = compile(train)(x)
        return Seen([loss], gradients(model))

    check(loop)


def test_another_thread() -> None:
    def loop(compile: Compile) -> Seen:
        model = mlp()
        compiled, x = compile(model), torch.randn(BATCH, 32)
        seen: list[Seen] = []
        thread = threading.Thread(target=lambda: seen.append(step(model, compiled, x)))
        thread.start()
        thread.join()
        here = step(model, compiled, x)
        return Seen([*seen[0].exact, *here.exact], [*seen[0].close, *here.close])

    check(loop)


def test_two_compiled_models_in_one_step() -> None:
    """A generator and a discriminator, with an optimizer each."""

    def loop(compile: Compile) -> Seen:
        makes, judges = mlp(), nn.Sequential(nn.Linear(8, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        made, judged = compile(makes), compile(judges)
        fakes = made(torch.randn(BATCH, 32))
        first = F.softplus(judged(fakes.detach())).mean() + F.softplus(-judged(torch.randn(BATCH, 8))).mean()
        first.backward()
        found = gradients(judges)
        judges.zero_grad()
        second = F.softplus(-judged(fakes)).mean()
        second.backward()
        return Seen([first.detach(), second.detach()], [*found, *gradients(makes, judges)])

    check(loop)


class Whole(nn.Module):
    """Another module in code of one's own: Dynamo skips what is torch's own and compiled in place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_module_compile() -> None:
    """nn.Module.compile with the backend by its name."""
    plain, _ = run(_compiled_in_place(backend="aot_eager_decomp_partition"), None)
    options = {"bits": None, "min_bytes": 0, "lowering": "eager"}
    found, _ = run(_compiled_in_place(backend="fxapprox", options=options), None)
    assert_same([*found.exact, *found.close], [*plain.exact, *plain.close])


def _compiled_in_place(**settings: object) -> Compile:
    def loop(_: Compile) -> Seen:
        model = Whole(mlp())
        model.compile(**settings)
        return step(model, model, torch.randn(BATCH, 32))

    return loop
