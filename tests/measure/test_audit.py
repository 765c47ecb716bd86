"""audit: errors that are known beforehand come out, noise is told from bias, and nothing of the model changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox import FxApproxError, OptionError
from fxapprox.codecs import Codec, Identity, Like
from fxapprox.measure.audit.records import BitsAudit, Cause, ParameterError
from fxapprox.measure.audit.result import Audit
from fxapprox.measure.gradient_error import GradientError, Tally, mean_of_pairs, total_error
from tools.zoo import models
from tools.zoo.training import relative, step, unrewritten


@dataclass(frozen=True)
class Scaled(Codec):
    """Gives a value back too small by a fixed factor: the error is all bias."""

    label: ClassVar[str] = "scaled"
    bits: int | None = 8
    factor: float = 0.9

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x * self.factor,)

    def decode(self, parts: tuple[Tensor, ...], like: Like) -> Tensor:
        return like.restride(parts[0])

    def nbytes(self, shape: object, dtype: object) -> int:
        return 4 * math.prod(shape)  # type: ignore[arg-type]


class TwoLayers(nn.Module):
    """The second layer's weights are the only ones that read a stored value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def mean_square(out: Tensor) -> Tensor:
    return out.square().mean()


def small() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(64, 64)


def test_the_bias_is_estimated_without_a_bias() -> None:
    """Over many draws: the mean of the estimate is the squared bias, which the plain mean's square exceeds."""
    torch.manual_seed(0)
    bias, estimates, uncertain, plain = torch.full((20,), 0.1), [], [], []
    for _ in range(500):
        tally = Tally()
        errors = [bias + torch.randn(20) for _ in range(4)]
        for error in errors:
            tally.add(error, torch.zeros(20))
        squared, deviation = mean_of_pairs(tally.error_pairs)
        assert deviation is not None
        estimates.append(squared)
        uncertain.append(deviation)
        plain.append(float(torch.stack(errors).mean(0).square().sum()))
    truth = float(bias.square().sum())
    assert sum(estimates) / 500 == pytest.approx(truth, abs=0.2)
    assert sum(plain) / 500 == pytest.approx(truth + 20 / 4, rel=0.05)
    told = math.sqrt(sum(deviation**2 for deviation in uncertain) / 500)
    assert told == pytest.approx(float(torch.tensor(estimates).std()), rel=0.15)


def test_numbers_of_a_tally() -> None:
    tally = Tally()
    exact = torch.tensor([3.0, 4.0])
    tally.add(exact * 1.1, exact)
    tally.add(exact * 1.1, exact)
    found = total_error([tally], [tally])
    assert found.error == pytest.approx(0.1, rel=1e-5)
    assert found.cosine == pytest.approx(1.0)
    assert found.bias == pytest.approx(0.1, rel=1e-5)
    assert found.noise == pytest.approx(0.0, abs=1e-5)
    assert found.added_variance is None  # both gradients are the same


@pytest.mark.parametrize(
    ("found", "exact", "error"), [(1.0, 0.0, None), (1.0, math.nan, None), (math.nan, 1.0, math.inf), (0.0, 1.0, 1.0)]
)
def test_errors_that_cannot_be_told(found: float, exact: float, error: float | None) -> None:
    tally = Tally()
    tally.add(torch.tensor([found]), torch.tensor([exact]))
    assert total_error([tally]).error == error


def test_identity_is_without_error(one_thread: None) -> None:
    model, x = small()
    found = fxapprox.audit(model, mean_square, x, (4, None), policy=lambda _: Identity(), progress=False)
    for setting in found.settings:
        assert setting.total.error == 0.0
        assert setting.total.bias == 0.0
        assert all(parameter.error.error == 0.0 for parameter in setting.parameters)
    assert found.floor is not None
    assert found.floor < 1e-5


def test_a_known_bias_is_found_and_blamed() -> None:
    """Weights' gradients are linear in the stored value: those of the second layer are 10% too small, always."""
    model = TwoLayers()

    def policy(a: fxapprox.Activation) -> Codec:
        return Scaled() if a.op == "aten.mm" else Identity()

    endless = iter(lambda: torch.randn(1024, 64), None)
    found = fxapprox.audit(model, mean_square, endless, (8,), batches=3, policy=policy, progress=False)
    first, second = found.at(8).parameters
    assert found.batches == 3
    assert first.error.error == 0.0
    assert second.error.error == pytest.approx(0.1, rel=1e-4)
    assert second.error.bias == pytest.approx(0.1, rel=0.05)  # batches' gradients differ a little, and so do errors
    assert second.error.added_variance == pytest.approx(0.01, rel=1e-3)  # 10% of what they differ by, squared
    (cause,) = found.at(8).causes
    assert (cause.storage, cause.share) == ("8-bit scaled", 1.0)
    assert cause.error == pytest.approx(found.at(8).total.error, rel=0.05)  # of the first batch alone


def test_errors_are_those_of_training_and_add_up(one_thread: None) -> None:
    """Dropout's masks included: they are those that training draws from the same seed."""
    case = models.mlp_dropout()
    found = fxapprox.audit(case.model, case.loss, case.args, (4,), batches=1, seed=1, progress=False).at(4)
    _, exact = step(case, unrewritten(case.model), seed=1)
    torch.compiler.reset()
    _, coded = step(case, fxapprox.compile(case.model, bits=4, lowering="eager"), seed=1)
    assert found.total.error == pytest.approx(relative(coded, exact), rel=1e-3)
    assert math.sqrt(sum(cause.error**2 for cause in found.causes)) == pytest.approx(found.total.error, rel=0.15)
    assert sum(cause.share for cause in found.causes) == pytest.approx(1.0)
    assert found.total.noise_error is None
    squares = sum((p.error.error or 0.0) ** 2 * p.norm**2 for p in found.parameters)
    assert math.sqrt(squares / sum(p.norm**2 for p in found.parameters)) == pytest.approx(found.total.error)
    assert found.total.noise is None  # one batch, not split


def test_dropout_draws_the_same_masks_and_nothing_is_touched() -> None:
    model = nn.Sequential(nn.BatchNorm1d(64), models.mlp_dropout().model)
    x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    state = torch.get_rng_state()
    results = [
        fxapprox.audit(model, F.cross_entropy, (x, y), (8,), targets=1, batches=2, causes=False, progress=False)
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool((p.grad == 3.0).all()) for p in model.parameters() if p.grad is not None)
    assert results[0] == results[1]
    assert results[0].floor is None
    assert any("draws random numbers" in note for note in results[0].notes)
    assert results[0].at(8).total.error is not None
    assert results[0].at(8).total.error < 0.02  # another mask would be an error of the order of 1


def test_parts_take_their_targets_along() -> None:
    """From the closure of the loss, as from the batch itself."""
    model, x = small()
    y = torch.randn(64, 64)

    def loss(out: Tensor) -> Tensor:
        return F.mse_loss(out, y)

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.inner(x), y)

    asked = {"bits": (4,), "causes": False, "progress": False}
    closed = fxapprox.audit(model, loss, x, **asked)
    given = fxapprox.audit(model, F.mse_loss, [x, y], targets=1, **asked)
    assert closed.parts == given.parts == 4
    assert closed.at(4).total == given.at(4).total
    compiled = fxapprox.audit(model, loss, x, compile_loss=True, **asked)
    inside = fxapprox.audit(WithLoss(), None, (x, y), **asked)
    assert compiled.at(4).total == inside.at(4).total
    assert compiled.at(4).saved_bytes > closed.at(4).saved_bytes  # what the loss stores is in it
    assert loss(torch.zeros(64, 64)) == F.mse_loss(torch.zeros(64, 64), y)  # the caller's closure is as it was


def test_several_graphs() -> None:
    """The backward of the first is compiled last."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.tail = small()[0], nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))

        def forward(self, x: Tensor) -> Tensor:
            h = self.head(x)
            torch._dynamo.graph_break()
            return self.tail(h)

    found = fxapprox.audit(Broken(), mean_square, torch.randn(64, 64), (4,), batches=1, progress=False)
    assert len(found.breaks) == 1
    assert found.breaks[0].source.endswith("in forward: torch._dynamo.graph_break()")
    assert {cause.module for cause in found.at(4).causes} >= {"head.1", "tail.2"}
    predicted = math.sqrt(sum(cause.error**2 for cause in found.at(4).causes))
    assert predicted == pytest.approx(found.at(4).total.error, rel=0.2)


def test_parameters_without_gradient_are_named() -> None:
    class Unused(TwoLayers):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.zeros(3))

    found = fxapprox.audit(Unused(), mean_square, torch.randn(16, 64), (8,), batches=1, causes=False, progress=False)
    assert "no gradient, or one of zero: spare" in found.notes
    assert not any("evaluation mode" in note for note in found.notes)
    assert found.at(8).parameters[0].name == "spare"
    assert found.at(8).parameters[0].error == GradientError(None, None)


def test_zero_gradients_are_said() -> None:
    model, x = small()
    found = fxapprox.audit(model.eval(), lambda out: (0 * out).sum(), x, (8,), batches=1, causes=False, progress=False)
    assert found.at(8).total == GradientError(None, None)
    assert "the model is in evaluation mode: dropout and batch statistics are not those of training" in found.notes
    assert found.recommendation == "No error can be told, because the exact gradient is zero or not finite."
    assert json.loads(found.to_json())["settings"][0]["total"]["error"] is None


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (
            None,
            {},
            r"audit got float32\[64, 64\] as the loss: expected a scalar tensor from the model; a loss_fn makes",
        ),
        (lambda out: out, {}, r"audit got float32\[64, 64\] as the loss: expected a scalar tensor"),
        (lambda out: out.mean().item(), {}, "audit got a float as the loss: expected a scalar tensor"),
        (lambda out: out.mean().detach(), {}, r"audit got a loss that depends on no parameter \(detached, or under"),
        (lambda out: out.sum() / 0 * 0, {}, "the loss of batch 1 is nan: no gradient can be compared"),
        (mean_square, {"memory_budget": 0.5}, "memory_budget= chooses them: leave it out"),
        (mean_square, {"batches": 0}, "batches=0: expected 1 or more"),
        (mean_square, {"bits": 8}, r"bits=8: expected different numbers of bits, such as \(8, 4, 2\)"),
        (mean_square, {"bits": (8, 3)}, "bits=3: expected 8, 4, 2, None"),
        (mean_square, {"targets": 1}, "targets=1: a batch has 1 elements"),
    ],
)
def test_bad_input_is_said(loss: Callable[[Tensor], Tensor], options: dict[str, object], message: str) -> None:
    model, x = small()
    with pytest.raises(FxApproxError, match=message):
        fxapprox.audit(model, loss, x, progress=False, **options)  # type: ignore[arg-type]


def test_bad_batches_and_models_are_said() -> None:
    model, x = small()
    with pytest.raises(OptionError, match="gave no batches"):
        fxapprox.audit(model, mean_square, iter(()), progress=False)
    with pytest.raises(OptionError, match=r"expected a tensor, a tuple or list of arguments.* got str"):
        fxapprox.audit(model, mean_square, "x", progress=False)
    with pytest.raises(OptionError, match="audit wants a module"):
        fxapprox.audit(torch.sin, mean_square, x, progress=False)  # type: ignore[arg-type]
    with pytest.raises(FxApproxError, match="the model has no parameters, and no argument requires a gradient"):
        fxapprox.audit(nn.ReLU(), mean_square, x, progress=False)
    with pytest.raises(FxApproxError, match="audit got a compiled model"):
        fxapprox.audit(torch.compile(model), mean_square, x, progress=False)  # type: ignore[arg-type]


def made() -> Audit:
    """An audit with numbers of every kind, for its text."""

    def setting(bits: int, scale: float, saved: int) -> BitsAudit:
        total = GradientError(0.009 * scale, 1 - 4e-5 * scale, 0.001 * scale, 0.99, 0.02, 2e-4 * scale)
        parameters = (
            ParameterError("blocks.0.attn.weight", 4096, 1.5, total),
            ParameterError("head.bias", 10, 0.5, GradientError(0.0, 1.0)),
            ParameterError("spare", 3, 0.0, GradientError(None, None)),
        )
        causes = (
            Cause("addmm_1", "blocks.0.attn", "net.py:3 in forward: x", f"{bits}-bit group", bits, 0.008 * scale, 0.8),
            Cause("mul", "", "net.py:9 in forward: y", f"{bits}-bit zero", bits, 0.004 * scale, 0.2),
        )
        return BitsAudit(bits, total, parameters, causes, saved)

    settings = (setting(8, 1, 2**20), setting(4, 11, 2**19), setting(2, 40, 2**18))
    return Audit(settings, 2**23, 2**22, 2.5e-7, 1, 4, ("a note",))


def test_text(golden: Callable[[str, str], None]) -> None:
    text = str(made())
    golden("audit.txt", text)
    assert max(map(len, text.splitlines())) <= 100


def test_recommendations() -> None:
    found = made()
    assert found.recommendation == (
        "Use 4 bits: 9.9% error (99% of it noise that averages out), about 4.5% with module blocks.0.attn kept at"
        " 8 bits, 16.0x less stored than by plain torch.compile; 2 bits stores 2.0x less still, at 36% error (99% of it"
        " noise that averages out)."
    )
    only = Audit(found.settings[2:], found.baseline_bytes, found.exact_bytes, None, 1, 4)
    assert only.recommendation == (
        "Nothing here is safe: 2 bits has the least error, 36% error (99% of it noise that averages out), about 16%"
        " with module blocks.0.attn kept at 8 bits; use exact mode."
    )
    useless = Audit(found.settings[:2], found.baseline_bytes, 2**19, None, 1, 4)
    assert useless.recommendation == "Use exact mode: no number of bits stores less."
    nothing = Audit(found.settings, 0, 0, None, 1, 4)
    assert nothing.recommendation == "Nothing is stored for backward here: there is nothing to choose."
    with pytest.raises(OptionError, match="bits=3 was not measured: 8 bits, 4 bits, 2 bits were"):
        found.at(3)  # type: ignore[arg-type]


def test_json() -> None:
    content = json.loads(made().to_json())
    assert content["schema"] == 1
    assert content["settings"][1]["bits"] == 4
    assert content["settings"][1]["causes"][0]["module"] == "blocks.0.attn"
    assert content["recommendation"] == made().recommendation


def test_a_model_without_values_cannot_be_run() -> None:
    with torch.device("meta"):
        model, x = small()
    with pytest.raises(fxapprox.FxApproxError, match="a model on the meta device has no values"):
        fxapprox.audit(model, mean_square, x, progress=False)


def test_parameters_whose_gradient_is_rounding_are_left_out_of_the_table() -> None:
    """A bias that softmax takes away again has an exact gradient of zero, and any relative error."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.shift = nn.Parameter(torch.zeros(64, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.second(torch.relu(self.first(x))) + self.shift, dim=1)

    weights = torch.randn(64, 64)
    found = fxapprox.audit(
        Shifted(), lambda out: (out * weights).sum(), torch.randn(64, 64), (4,), batches=1, causes=False, progress=False
    )
    text = str(found)
    assert "left out: 1 whose exact gradient is next to nothing, such as shift" in " ".join(text.split())
    assert not any(line.startswith("│ shift") for line in text.splitlines())


class Outlier(nn.Module):
    """One feature of the hidden layer is much larger than the others, and weighs as much less in the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 8)
        with torch.no_grad():
            self.first.weight[5] *= 300
            self.second.weight[:, 5] /= 300

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(nn.functional.gelu(self.first(x))))).square().mean()


def test_a_parameter_that_is_far_off_is_pointed_out() -> None:
    torch.manual_seed(0)
    found = fxapprox.audit(Outlier(), None, torch.randn(128, 64), bits=(8, 4), batches=1, causes=False, progress=False)
    worst, total = found.at(4).worst, found.at(4).total.error
    assert worst is not None
    assert worst.error.error is not None
    assert total is not None
    assert worst.error.error == max(p.error.error or 0.0 for p in found.at(4).parameters)
    text = " ".join(str(found).split())
    assert "worst parameter: 8 bits" in text
    far = worst.error.error > max(0.1, 3 * total)
    assert (f"in 4 bits the gradient of {worst.name} is off by" in text) == far
