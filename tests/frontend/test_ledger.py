"""Many compiled models in one process: what they share, what each reports, and that they go."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

import fxapprox
from fxapprox.frontend.backend import Backend
from fxapprox.options import Options


class Net(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(x))).square().mean()


def by_name(model: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(model, backend="fxapprox", options={"bits": 4, "lowering": "eager", **options})


def called(model: Callable[..., Any], **options: Any) -> Any:
    return fxapprox.compile(model, **{"bits": 4, "lowering": "eager", **options})


def in_place(model: nn.Module, **options: Any) -> Any:
    model.compile(backend="fxapprox", options={"bits": 4, "lowering": "eager", **options})
    return model


WAYS = (called, by_name, in_place)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _counters() -> None:
    counters.clear()


@pytest.mark.parametrize("way", WAYS)
def test_equal_models_share_a_graph_and_each_reports_it(way: Callable[..., Any]) -> None:
    compiled = [way(Net()) for _ in range(3)]
    for count, each in enumerate(compiled, 1):
        each(torch.randn(64, 64)).backward()
        (report,) = fxapprox.reports(each)
        assert (report.shared, report.ratio > 4) == (count, True)
    assert graphs() == 1
    (report,) = fxapprox.reports(nn.ModuleList(compiled))
    assert report.shared == 3
    assert "shared by 3" in str(report)


def test_equal_blocks_of_a_model_share_a_graph() -> None:
    class Block(Net):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.gelu(self.a(x)))

    model = nn.Sequential(*(called(Block()) for _ in range(12)))
    model(torch.randn(16, 64, requires_grad=True)).sum().backward()
    assert graphs() == 1
    assert [report.shared for report in fxapprox.reports(model)] == [12]


def test_a_function_that_is_compiled_at_every_step() -> None:
    net = Net()

    def loss(x: Tensor) -> Tensor:
        return net(x)

    for _ in range(10):
        run = called(loss)
        run(torch.randn(64, 64)).backward()
        assert fxapprox.reports(run)[0].ratio > 4
    assert graphs() == 1


@pytest.mark.parametrize("way", WAYS)
def test_many_models_of_a_class_and_all_are_compiled(way: Callable[..., Any]) -> None:
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=3):
        for width in (8, 10, 12, 14, 16):
            compiled = way(Net(width), strict=True)
            compiled(torch.randn(8, width)).backward()
            assert len(fxapprox.reports(compiled)) == 1
    assert graphs() == 5


@pytest.mark.parametrize("way", WAYS)
@torch._dynamo.config.patch(recompile_limit=2)
def test_the_limit_of_one_model_is_said(way: Callable[..., Any]) -> None:
    class Told(Net):
        def forward(self, x: Tensor, *, scale: str) -> Tensor:  # type: ignore[override]
            return super().forward(x * float(scale))

    for strict in (False, True):
        torch._dynamo.reset()
        compiled, x = way(Told(), strict=strict), torch.randn(8, 64)
        for scale in ("1", "2"):
            compiled(x, scale=scale).backward()
        if strict:
            with pytest.raises(fxapprox.FxApproxError, match=r"compiled 2 times, and .*recompile_limit allows no more"):
                compiled(x, scale="3")
        else:
            with pytest.warns(UserWarning, match=r"forward \(.*test_ledger.py:\d+\) of .*Told.*mark_dynamic"):
                compiled(x, scale="3").backward()


def test_options_that_differ_share_nothing() -> None:
    def first(_: fxapprox.Activation) -> None: ...

    def second(_: fxapprox.Activation) -> None: ...

    class Chooser:
        def __init__(self, uuid: str) -> None:
            self.uuid = uuid

        def __call__(self, _: fxapprox.Activation) -> None: ...

        def choose(self, _: fxapprox.Activation) -> None: ...

    def backend(**options: Any) -> Backend:
        return Backend(Options(**options))

    one, other = Chooser("one"), Chooser("other")
    assert backend(bits=4) == backend(bits=4) != backend(bits=8)
    assert backend(bits={"a": 4}) == backend(bits={"a": 4}) != backend(bits={"a": 8})
    assert backend(policy=first) == backend(policy=first) != backend(policy=second)
    assert backend(policy=one) == backend(policy=Chooser("one")) != backend(policy=other)
    assert backend(policy=one.choose) == backend(policy=one.choose) != backend(policy=other.choose)
    assert backend() != backend(policy=first)
    assert Backend(Options(), {"max_autotune": True}) != Backend(Options())


def test_each_model_takes_the_environment_as_it_was_when_it_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    for bits in ("4", "null", "2", "4"):
        monkeypatch.setenv("FXAPPROX_OPTIONS", f'{{"bits": {bits}, "lowering": "eager"}}')
        compiled.append(torch.compile(Net(), backend="fxapprox"))
    monkeypatch.setenv("FXAPPROX_OPTIONS", "bits=4")
    wrong = [torch.compile(Net(), backend="fxapprox") for _ in range(2)]
    monkeypatch.delenv("FXAPPROX_OPTIONS")
    for each in compiled:
        each(torch.randn(64, 64)).backward()
    bits = [report.options.bits for each in compiled for report in fxapprox.reports(each) if report.options]
    assert bits == [4, None, 2, 4]
    assert graphs() == 3
    for each in wrong:
        with pytest.raises(fxapprox.OptionError, match="FXAPPROX_OPTIONS='bits=4'"):
            each(torch.randn(64, 64))


def test_the_plan_of_a_second_model_by_name(tmp_path: Any) -> None:
    models = [by_name(Net()), by_name(Net())]
    for i, each in enumerate(models):
        each(torch.randn(64, 64)).backward()
        fxapprox.save_plan(each, tmp_path / f"{i}.json")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()


@pytest.mark.parametrize(
    ("model", "shape", "hint"),
    [
        (lambda: in_place(nn.Sequential(nn.Linear(8, 8), nn.Tanh())), (4, 8), r"use fxapprox\.compile"),
        (lambda: called(nn.LSTM(8, 8)), (4, 2, 8), "allow_rnn"),
        (lambda: by_name(nn.GRU(8, 8)), (4, 2, 8), "allow_rnn"),
    ],
)
def test_a_model_of_which_nothing_is_captured(model: Callable[[], Any], shape: tuple[int, ...], hint: str) -> None:
    compiled = model()
    assert fxapprox.reports(compiled) == ()
    with pytest.warns(UserWarning, match=f"nothing of .* was captured.*{hint}"):
        compiled(torch.randn(shape))
    compiled(torch.randn(shape))  # said once
    with pytest.raises(fxapprox.FxApproxError, match=f"nothing of .* was captured.*{hint}"):
        fxapprox.reports(compiled)
    with pytest.raises(fxapprox.FxApproxError, match="was captured"):
        fxapprox.save_plan(compiled, "nowhere.json")
    with pytest.raises(fxapprox.FxApproxError, match="was captured"):
        called(nn.LSTM(8, 8), strict=True)(torch.randn(4, 2, 8))


def test_what_is_no_training_says_nothing() -> None:
    with torch.no_grad():
        called(nn.LSTM(8, 8), strict=True)(torch.randn(4, 2, 8))
    with torch.compiler.set_stance("force_eager"):
        called(Net(), strict=True)(torch.randn(4, 64))
    with pytest.raises(TypeError, match=r"unsupported|must be"):
        called(Net(), strict=True)("text")
    outer = called(lambda x: nn.functional.silu(called(Net())(x)), strict=True)
    outer(torch.randn(4, 64)).backward()


@pytest.mark.parametrize("way", WAYS)
def test_graphs_go_with_the_model(way: Callable[..., Any]) -> None:
    def modules() -> int:
        return sum(issubclass(type(each), torch.fx.GraphModule) for each in gc.get_objects())

    def kept(make: Callable[[nn.Module], Any]) -> tuple[int, int]:
        torch._dynamo.reset()
        gc.collect()
        before = modules()
        alive = []
        for width in (64, 64, 66, 68, 64):
            model = Net(width)
            run = make(model)
            run(torch.randn(32, width)).backward()
            alive += [weakref.ref(model)]
        del model, run
        gc.collect()
        return modules() - before, sum(each() is not None for each in alive)

    plain = kept(lambda model: torch.compile(model, backend="aot_eager_decomp_partition"))
    assert kept(way) <= plain


def test_a_report_of_a_model_whose_graph_was_another_ones() -> None:
    first = called(Net())
    first(torch.randn(64, 64)).backward()
    (before,) = fxapprox.reports(first)
    assert before.joint is not None
    text, peaks = str(before), (before.peak_bytes, before.baseline_peak_bytes)
    del first, before
    gc.collect()
    second = called(Net())
    second(torch.randn(64, 64)).backward()
    (report,) = fxapprox.reports(second)
    assert report.joint is None
    assert (str(report), (report.peak_bytes, report.baseline_peak_bytes)) == (text, peaks)
    assert report.to_json()
    assert report.to_html()
    assert report.to_trace()
    with pytest.raises(fxapprox.FxApproxError, match=r"is gone; fxapprox\.explain"):
        report.pareto()


def test_threads_leave_one_report() -> None:
    model, x = Net(), torch.randn(64, 64)
    compiled, barrier, failed = called(model), threading.Barrier(4), []

    def train() -> None:
        try:
            barrier.wait()
            for _ in range(3):
                compiled(x).backward()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed
    assert len(fxapprox.reports(compiled)) == 1


def test_threads_with_models_of_their_own() -> None:
    found: dict[int, int] = {}

    def train(width: int) -> None:
        compiled = called(Net(width))
        for _ in range(2):
            compiled(torch.randn(32, width)).backward()
        found[width] = fxapprox.reports(compiled)[0].baseline_bytes

    threads = [threading.Thread(target=train, args=(width,)) for width in (64, 80, 96)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(found) == [64, 80, 96]
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_reports_of_their_own(way: Callable[..., Any], twin: Callable[[Any], Any]) -> None:
    compiled, x = way(Net()), torch.randn(64, 64)
    compiled(x).backward()
    other = twin(compiled)
    if way is in_place:
        in_place(other)  # torch leaves out of copies what is compiled in place
    assert fxapprox.reports(other) == ()
    other(x).backward()
    assert [report.shared for report in fxapprox.reports(other)] == [2]
    assert graphs() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_trains_what_its_parent_has_compiled(one_thread: None) -> None:
    """On one thread: OpenMP of the parent and of its fork wait for each other otherwise."""
    compiled, x = called(Net()), torch.randn(64, 64)
    compiled(x).backward()
    if (child := os.fork()) == 0:
        try:
            compiled(x).backward()
            other = called(Net(80))
            other(torch.randn(8, 80))
            os._exit(0 if len(fxapprox.reports(compiled)) == len(fxapprox.reports(other)) == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


MARKED: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], tuple[int, ...]]] = {
    "batch": (
        lambda: nn.Sequential(nn.Linear(12, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 96)),
        lambda n: torch.randn(n, 9, 12), (0,),
    ),
    "batch and time": (
        lambda: nn.Sequential(nn.Linear(12, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 60)),
        lambda n: torch.randn(n, n + 5, 12), (0, 1),
    ),
    "rows": (lambda: nn.Sequential(nn.Linear(12, 70), nn.Dropout(0.2), nn.SiLU()), lambda n: torch.randn(n, 12), (0,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("bits", [8, 4, None])
def test_one_graph_serves_a_marked_range(name: str, bits: int | None) -> None:
    make, batch, dimensions = MARKED[name]
    compiled = called(make(), bits=bits, min_bytes=0, strict=True)
    for n in (16, 7, 33):
        x = batch(n)
        for dimension in dimensions:
            torch._dynamo.mark_dynamic(x, dimension, min=2, max=64)
        compiled(x).square().mean().backward()
    assert graphs() == 1
