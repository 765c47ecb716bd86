"""The backend: what a model that trains through it can rely on."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.codecs import Codec, Exact, Group, Identity, Standard, Threshold, Zero
from fxapprox.frontend.cache_key import cache_key
from fxapprox.ir.records import Plan
from fxapprox.measure.memory import stored_bytes
from fxapprox.options import Options
from fxapprox.passes import pipeline
from tools.zoo.training import gradients, relative

ROOT = Path(__file__).resolve().parents[2]


def train_once(model: nn.Module, run, x: Tensor) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    loss = run(x).square().mean()
    loss.backward()
    return loss.detach(), gradients(model)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Flatten(), nn.LazyLinear(4),
    )  # fmt: skip


def test_the_backend_is_found_by_name_and_reports() -> None:
    model, x = conv_net(), torch.randn(8, 3, 16, 16)
    model(x)
    compiled = torch.compile(model, backend="fxapprox", options={"bits": 4, "lowering": "eager"})
    assert fxapprox.reports(compiled) == ()
    train_once(model, compiled, x)
    (report,) = fxapprox.reports(compiled)
    assert report.saved_bytes < report.baseline_bytes / 4
    with pytest.raises(fxapprox.FxApproxError, match="wants what"):
        fxapprox.reports(model)


@pytest.mark.parametrize("by_name", [True, False])
def test_functions_report_too(by_name: bool) -> None:
    weight, options = torch.randn(64, 64, requires_grad=True), {"bits": 4, "lowering": "eager"}

    def run(x: Tensor) -> Tensor:
        return (F.relu(x @ weight) @ weight).sum()

    compiled = torch.compile(run, backend="fxapprox", options=options) if by_name else fxapprox.compile(run, **options)
    compiled(torch.randn(64, 64)).backward()
    (report,) = fxapprox.reports(compiled)
    assert report.saved_bytes < report.baseline_bytes / 7
    with pytest.raises(fxapprox.FxApproxError, match="wants what"):
        fxapprox.reports(run)


def test_the_environment_chooses_for_a_backend_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXAPPROX_OPTIONS", '{"bits": 2, "lowering": "eager"}')
    model, x = conv_net(), torch.randn(8, 3, 16, 16)
    model(x)
    found = []
    for options in (None, {"bits": 8, "lowering": "eager"}):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="fxapprox", options=options)
        train_once(model, compiled, x)
        found.append(fxapprox.reports(compiled)[0].options)
    assert found == [Options(bits=2, lowering="eager"), Options(bits=8, lowering="eager")]
    assert len({cache_key(options) for options in found if options is not None}) == 2
    train_once(model, called := fxapprox.compile(model, lowering="eager"), x)
    assert fxapprox.reports(called)[0].options == Options(lowering="eager"), "what is called has its own options"


def test_reports_of_what_is_compiled_inside_a_module() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # nn.Module.compile does not compile what is all torch's own
            return torch.tanh(super().forward(x))

    first, second, last = (Own(64, 64) for _ in range(3))
    model = nn.Sequential(fxapprox.compile(first, lowering="eager"), nn.Sequential(nn.Flatten(), second), last)
    second.compile(backend="fxapprox", options={"bits": 4, "lowering": "eager"})
    last.compile(backend="aot_eager")
    assert fxapprox.reports(model) == ()
    model(torch.randn(64, 64)).square().mean().backward()
    assert [report.options.bits for report in fxapprox.reports(model) if report.options] == [8, 4]
    assert len(fxapprox.reports(second)) == 1
    for other in (last, nn.Flatten()):
        with pytest.raises(fxapprox.FxApproxError, match="or a module around it, not"):
            fxapprox.reports(other)


def test_identity_codec_changes_no_bit(one_thread: None) -> None:
    model, x = conv_net(), torch.randn(8, 3, 16, 16)
    model(x)
    plain = train_once(model, fxapprox.compile(model, bits=None, min_bytes=2**40, lowering="eager"), x)
    torch._dynamo.reset()
    same = train_once(model, fxapprox.compile(model, lowering="eager", policy=lambda _: Identity(), strict=True), x)
    assert torch.equal(plain[0], same[0])
    assert torch.equal(plain[1], same[1])


def test_policy_has_the_last_word() -> None:
    model, x = conv_net(), torch.randn(8, 3, 16, 16)
    model(x)
    seen = []

    def policy(activation: fxapprox.Activation) -> Group | Exact | None:
        seen.append(activation.name)
        return Exact() if activation.module == "0" else None

    compiled = fxapprox.compile(model, bits=4, lowering="eager", policy=policy)
    train_once(model, compiled, x)
    storage = {d.module: d.storage for d in fxapprox.reports(compiled)[0].decisions if d.bytes_after > 1000}
    assert seen
    assert "threshold" not in storage.get("0", "")
    assert "threshold" in storage["4"]
    with pytest.raises(Exception, match="expected a codec"):
        train_once(model, fxapprox.compile(model, lowering="eager", policy=lambda _: 4), x)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("codec", "lacks"),
    [(Threshold(4), "a decision"), (Zero(4), "a decision"), (Standard(4), "statistics"), (Group(4), "")],
)
def test_a_codec_of_the_policy_that_does_not_fit_is_told(codec: Codec, lacks: str) -> None:
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.SiLU()), torch.randn(64, 64)
    compiled = fxapprox.compile(model, lowering="eager", policy=lambda _: codec)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train_once(model, compiled, x)
    told = [str(each.message) for each in seen]
    if not lacks:
        assert not told
    else:
        (text,) = told
        (report, *_) = fxapprox.reports(compiled)
        assert re.search(
            rf"the policy chose does not fit: \w+ in \d is stored as 4-bit group, not as {codec.text}", text
        )
        assert f"it lacks {lacks}" in text
        assert any(f"{d.value} in {d.module} is stored" in text for d in report.decisions)


def test_batch_norm_statistics_move_as_in_torch_compile() -> None:
    model, x = conv_net(), torch.randn(8, 3, 16, 16)
    model(x)
    other = copy.deepcopy(model)
    train_once(model, fxapprox.compile(model, bits=4, lowering="eager"), x)
    train_once(other, torch.compile(other, backend="aot_eager_decomp_partition"), x)
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_tensor_returned_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = F.gelu(self.first(x))
            return h, h, self.second(h)

    _same_as_exact(Twice(), lambda out: sum(o.square().mean() for o in out))


def test_a_user_output_that_is_saved_too() -> None:
    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.first(x))
            return self.second(h), h

    exact, found = _same_as_exact(Shown(), lambda out: out[0].square().mean())
    assert torch.equal(exact[1], found[1])  # an output as it is, not a decoded copy


def test_a_saved_view_whose_base_is_not_saved() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 128), nn.Linear(64, 32)

        def forward(self, x: Tensor) -> Tensor:
            gate, value = self.first(x).chunk(2, -1)
            return self.second(torch.sigmoid(gate) * value[:, :64].transpose(0, 0))

    _same_as_exact(Halves(), lambda out: out.square().mean())


def _same_as_exact(model: nn.Module, loss) -> tuple:
    x = torch.randn(128, 32)
    results = []
    for bits in (None, 8):
        torch._dynamo.reset()
        model.zero_grad()
        out = fxapprox.compile(model, bits=bits, lowering="eager", strict=True)(x)
        loss(out).backward()
        results.append((out, gradients(model)))
    assert relative(results[1][1], results[0][1]) < 0.02
    return results[0][0], results[1][0]


def test_graph_breaks_and_several_graphs() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.first(x))
            torch._dynamo.graph_break()
            return self.second(F.silu(h))

    model, x = Broken(), torch.randn(64, 64)
    compiled = fxapprox.compile(model, bits=8, lowering="eager", strict=True)
    train_once(model, compiled, x)
    assert len(fxapprox.reports(compiled)) == 2


class Eager(nn.Module):
    """In the middle of it stands what Dynamo does not capture."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(32, 32), middle, nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._eagerly(F.relu(self.first(x))))

    @torch.compiler.disable
    def _eagerly(self, x: Tensor) -> Tensor:
        found = self.middle(x)
        return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("middle", [nn.LSTM(32, 32), nn.Tanh(), nn.Softmax(-1), nn.Hardswish()])
def test_what_eager_operators_save_is_not_stored_twice(middle: nn.Module, bits: int) -> None:
    """LSTM, tanh and softmax save their result, which the next graph reads; Hardswish saves its operand."""
    model, x = Eager(middle), torch.randn(64, 4, 32)
    stored, last = {}, {}
    for asked in (None, bits):
        torch._dynamo.reset()
        compiled = fxapprox.compile(model, bits=asked, lowering="eager", min_bytes=0)
        out = compiled(x)
        stored[asked] = stored_bytes(out, exclude=[x, *model.parameters()])
        last[asked] = fxapprox.reports(compiled)[-1].saved_bytes
        out.sum().backward()
    assert stored[bits] <= stored[None]
    assert (last[bits] < last[None]) == isinstance(middle, nn.Hardswish), "coded where nobody else saves it"


class Parts(nn.Module):
    """A graph hands on parts of one value, and saves other values that these lie beside."""

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.scaled, self.qkv, self.out = scaled, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(F.dropout(F.gelu(x), 0.1)).chunk(3, -1)
        weights = (q / 5.6 if self.scaled else q) @ k.transpose(-1, -2)
        torch._dynamo.graph_break()
        return self.out(F.softmax(weights, -1) @ v)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("scaled", [False, True])
def test_no_graph_before_a_break_is_left_alone(scaled: bool, bits: int | None) -> None:
    """What is handed on is alive anyway, or taken not to be: whichever stores no more than torch's own partition."""
    model, x = Parts(scaled=scaled), torch.randn(4, 16, 32, requires_grad=True)
    compiled = fxapprox.compile(model, bits=bits, lowering="eager", min_bytes=0, strict=True)
    out = compiled(x)
    first, last = fxapprox.reports(compiled)
    assert not first.fallback
    assert not last.fallback
    held = stored_bytes(out, exclude=[x, *model.parameters()])
    assert held == first.saved_bytes + last.saved_bytes <= first.baseline_bytes + last.baseline_bytes
    out.sum().backward()


def test_forward_only_and_nothing_to_save() -> None:
    model = nn.Linear(8, 8, bias=False)
    compiled = fxapprox.compile(model, lowering="eager")
    with torch.no_grad():
        assert torch.equal(compiled(torch.ones(2, 8)), model(torch.ones(2, 8)))
    assert fxapprox.reports(compiled) == ()
    x = torch.ones(4, requires_grad=True)
    fxapprox.compile(lambda t: (t + 1).sum(), lowering="eager")(x).backward()
    assert torch.equal(x.grad, torch.ones(4))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:var_mean")  # of the empty batch, by GroupNorm itself
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (7, 3, 19, 21), (0, 3, 16, 16)])
def test_odd_and_empty_batches(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(shape)
    results = []
    for bits in (None, 8):
        torch._dynamo.reset()
        model.zero_grad()
        fxapprox.compile(model, bits=bits, lowering="eager", min_bytes=0, strict=True)(x).sum().backward()
        results.append(gradients(model))
    assert torch.allclose(results[0], results[1], rtol=0.05, atol=0.05 * float(results[0].abs().max()) + 1e-6)


def test_changing_batch_sizes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    compiled = fxapprox.compile(model, bits=8, lowering="eager", strict=True)
    for batch in (64, 65, 67, 128):
        x = torch.randn(batch, 64)
        exact = train_once(model, model, x)
        found = train_once(model, compiled, x)
        assert torch.allclose(found[0], exact[0])
        assert relative(found[1], exact[1]) < 0.03
    assert len(fxapprox.reports(compiled)) == 2  # one for 64, one for every other size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 8)).to(dtype)
    x = torch.randn(64, 64, dtype=dtype)
    exact = train_once(model, fxapprox.compile(model, bits=None, lowering="eager"), x)
    torch._dynamo.reset()
    found = train_once(model, fxapprox.compile(model, bits=8, lowering="eager", strict=True), x)
    assert torch.equal(exact[0], found[0])
    assert relative(found[1].double(), exact[1].double()) < 0.03


def test_unknown_operators_are_kept_exactly() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumprod(self.first(x), 0)

    model, x = Odd(), torch.rand(32, 64)
    exact = train_once(model, model, x)
    compiled = fxapprox.compile(model, bits=2, lowering="eager", strict=True)
    found = train_once(model, compiled, x)
    assert torch.allclose(exact[1], found[1], rtol=1e-4)


def test_a_graph_that_cannot_be_handled_keeps_its_exact_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(activations: tuple[fxapprox.Activation, ...], options: fxapprox.Options, **_: object) -> Plan:
        raise fxapprox.UnsupportedGraph("plan", "made up", node=activations[-1].name)

    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(32, 64)
    exact = train_once(model, model, x)
    monkeypatch.setattr(pipeline, "plan", refuse)
    compiled = fxapprox.compile(model, bits=4, lowering="eager")
    with (
        pytest.warns(UserWarning, match="stores this graph without loss: plan at node '.*': made up"),
        pytest.warns(UserWarning, match="stores this graph exactly: plan at node '.*': made up"),
    ):
        found = train_once(model, compiled, x)
    assert torch.allclose(exact[1], found[1], rtol=1e-4, atol=1e-6)
    assert "made up" in fxapprox.reports(compiled)[0].fallback
    torch._dynamo.reset()
    with pytest.raises(Exception, match="made up"):
        train_once(model, fxapprox.compile(model, bits=4, lowering="eager", strict=True), x)


CACHE_PROGRAM = """
import sys, torch, fxapprox
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
x = torch.randn(128, 64)
fxapprox.compile(model, bits=int(sys.argv[1]))(x).square().mean().backward()
print(float(torch.cat([p.grad.flatten() for p in model.parameters()]).double().pow(2).sum()))
"""


@pytest.mark.inductor
def test_processes_that_share_a_cache_and_differ_in_bits(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CACHE_PROGRAM)
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def run(bits: int, cache: str) -> str:
        env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / cache)
        done = subprocess.run(
            [sys.executable, str(program), str(bits)], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shared = [run(bits, "shared") for bits in (8, 4)]
    assert shared[0] != shared[1]
    assert run(4, "own") == shared[1]


@pytest.mark.inductor
def test_inductor_runs_the_same_graphs() -> None:
    model, x = conv_net(), torch.randn(8, 3, 16, 16)
    model(x)
    plain = train_once(model, torch.compile(model), x)
    for bits, limit in ((8, 0.02), (None, 1e-4)):
        torch._dynamo.reset()
        found = train_once(model, fxapprox.compile(model, bits=bits, strict=True), x)
        assert torch.equal(found[0], plain[0])
        assert relative(found[1], plain[1]) < limit


def test_no_warning_on_the_way() -> None:
    model, x = conv_net(), torch.randn(8, 3, 16, 16)
    model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train_once(model, fxapprox.compile(model, bits=4, lowering="eager"), x)


@pytest.mark.parametrize("size", [(300,), (300, 70), (20, 400)])
def test_eager_lowering_runs_constants_that_inductor_counts_in_unsigned_integers(size: tuple[int, ...]) -> None:
    weight = torch.randn(8, size[0], requires_grad=True)

    def model(x: Tensor) -> Tensor:
        return (torch.relu(x @ weight) @ torch.eye(*size)).square().mean()

    x = torch.randn(16, 8)
    (exact,) = torch.autograd.grad(model(x), weight)
    run = fxapprox.compile(model, bits=None, lowering="eager", strict=True)
    torch.testing.assert_close(torch.autograd.grad(run(x), weight)[0], exact)
