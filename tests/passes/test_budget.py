"""budget: the cheapest setting that fits, and never a higher peak for a smaller budget."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxapprox
from fxapprox import OptionError, Options
from fxapprox.ir.records import Segment
from fxapprox.memory.settings import Point, is_lower
from fxapprox.memory.timeline import Timeline
from fxapprox.passes.budget import Rung, Setting, budget_bytes, choose, estimated_error, estimated_time, ladder
from fxapprox.passes.classify import classify
from fxapprox.passes.plan import plan
from fxapprox.report.accounting import report_of
from tests.passes.graphs import Traced, joint_of, traced
from tools.zoo.models import Case, demo_resnet, gpt
from tools.zoo.training import relative, step, unrewritten

MIB = 2**20


Peaks = list[tuple[int, list[int]]]  # of each rung, and of the settings before it


def chosen(peaks: Peaks, budget: int) -> tuple[Point, list[str]]:
    """(what is chosen, what was tried) where the settings have these peaks."""
    tried: list[str] = []
    known = {str(i): peak for i, (peak, _) in enumerate(peaks)}
    known |= {f"{i}.{j}": peak for i, (_, between) in enumerate(peaks) for j, peak in enumerate(between)}

    def attempt(setting: Setting) -> Point:
        tried.append(setting.text)
        return Point(setting.text, setting.options, known[setting.text], 1.0, 0.0, Timeline(()))

    def settings(names: Iterable[str]) -> tuple[Setting, ...]:
        return tuple(Setting(name, Options()) for name in names)

    rungs = [
        Rung(*settings([str(i)]), settings(f"{i}.{j}" for j in range(len(between))))
        for i, (_, between) in enumerate(peaks)
    ]
    found = choose(rungs, budget, attempt, baseline=2000)
    assert found is not None
    return found, tried


def alone(*peaks: int) -> Peaks:
    return [(peak, []) for peak in peaks]


def test_the_first_that_fits_is_taken_and_no_more_are_tried() -> None:
    found, tried = chosen(alone(900, 500, 400, 100), 500)
    assert found.peak_bytes == 500
    assert tried == ["0", "1"]


def test_a_setting_that_hardly_lowers_the_peak_is_passed_over() -> None:
    assert chosen(alone(900, 890, 700), 895)[0].peak_bytes == 700


def test_the_message_names_the_smallest_budget() -> None:
    with pytest.raises(
        OptionError, match=r"memory_budget: .* 99 B or less\. .*is 0\.051 of .* 2\.0 KiB: 101 B, with 1"
    ):
        chosen(alone(300, 101, 200), 99)


def test_a_setting_between_two_rungs_is_taken_where_it_fits() -> None:
    peaks: Peaks = [(900, []), (500, [800, 490, 600]), (400, [450])]
    assert chosen(peaks, 800)[1] == ["0", "1", "1.0"]
    assert chosen(peaks, 700)[0].setting == "1.2"  # what is lower than its rung is passed over
    assert chosen(peaks, 500)[0].setting == "1"
    assert chosen(peaks, 480)[0].setting == "2.0"


SOME_PEAK = st.integers(1, 1000)


@given(st.lists(st.tuples(SOME_PEAK, st.lists(SOME_PEAK, max_size=3)), min_size=1), st.lists(SOME_PEAK, min_size=2))
def test_a_smaller_budget_never_has_a_higher_peak(peaks: Peaks, budgets: list[int]) -> None:
    found, steps = [], [peaks[0][0]]
    for peak, _ in peaks:
        steps += [peak] if is_lower(peak, steps[-1]) else []
    for budget in sorted(budgets, reverse=True):
        if budget < steps[-1]:
            with pytest.raises(OptionError):
                chosen(peaks, budget)
        else:
            found.append(chosen(peaks, budget)[0].peak_bytes)
            assert found[-1] <= budget
    assert all(a >= b for a, b in pairwise(found))


@pytest.mark.parametrize(("budget", "expected"), [(0.5, 1000), (1, 2000), ("3MiB", 3 * MIB), ("512B", 512)])
def test_a_budget_in_bytes(budget: float | str, expected: int) -> None:
    assert budget_bytes(budget, 2000) == expected


def settings_on(rungs: Iterable[Rung]) -> list[Setting]:
    return [setting for rung in rungs for setting in (*rung.between, rung.setting)]


def test_the_ladder_begins_exact_and_stays_so_where_it_has_to() -> None:
    names = [setting.text for setting in settings_on(ladder(Options(memory_budget=0.5)))]
    assert names[0] == "exact"
    assert len(set(names)) == len(names)
    assert {"8 bits and exact, 12 on average", "8 bits, 0.5 of checkpoints", "4 bits, checkpoints"} <= {*names}
    lossless = [setting.options for setting in settings_on(ladder(Options(memory_budget=0.5, bits=None, min_bytes=7)))]
    assert len(lossless) > 1
    assert all(options.bits is None and options.checkpoint_bits is None for options in lossless)
    assert all(options.memory_budget is None and options.min_bytes == 7 for options in lossless)


def test_time_grows_with_what_is_computed_again() -> None:
    def again(flops: int) -> Segment:
        return Segment((), (), 1, flops)

    assert estimated_time((), 900) == 1
    assert estimated_time((again(300), again(600)), 900) == pytest.approx(4 / 3)
    assert estimated_time((again(0),), 0) == 1


def test_error_grows_as_bits_fall() -> None:
    joint = joint_of(nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))), torch.randn(64, 64))
    activations = classify(joint, min_bytes=0)
    errors = []
    for bits in (None, 8, 4, 2):
        options = Options(bits=bits, min_bytes=0)
        errors.append(estimated_error(plan(activations, options), activations, options, {}))
    assert errors[0] == 0
    assert all(a < b for a, b in pairwise(errors))


# --- end to end ----------------------------------------------------------------------------------


def small_gpt() -> Case:
    return gpt(layers=2, width=32, sequence=32, batch=4, vocab=64)


def small_resnet() -> Case:
    return demo_resnet(depth=8, batch=4, width=4)


CASES = {"gpt": small_gpt, "resnet": small_resnet}


@cache
def joint(name: str) -> Traced:
    case = CASES[name]()
    return traced(case.model, *case.args)


@cache
def settings_of(name: str) -> fxapprox.Report:
    """A report whose settings have been tried."""
    report = report_of(joint(name).split(memory_budget=1.0), lowering="eager")
    report.settings()
    return report


@pytest.mark.parametrize("name", CASES)
def test_the_curve_falls_in_peak_and_rises_in_cost(name: str) -> None:
    report = settings_of(name)
    curve = report.pareto()
    assert len(curve) >= 3
    assert all(is_lower(b.peak_bytes, a.peak_bytes) and a.cost <= b.cost for a, b in pairwise(curve))
    assert curve[0].setting == "exact" == report.setting
    assert all("checkpoints" in p.setting for p in curve if p.time > 1)
    assert all(p.error > 0 for p in curve[1:])


@pytest.mark.parametrize("name", CASES)
def test_peaks_of_twelve_budgets(name: str) -> None:
    """What the tried settings give: each budget is met, or refused with the smallest that is not."""
    report = settings_of(name)
    points = {p.setting: p for p in report.settings()}
    rungs = [Rung(Setting(p.setting, p.options)) for p in report.settings()]
    baseline, peaks = report.baseline_peak_bytes, []
    least = report.pareto()[-1].peak_bytes
    for i in range(12):
        budget = budget_bytes(1 - i / 12, baseline)
        if budget < least:
            with pytest.raises(OptionError, match="smallest budget"):
                choose(rungs, budget, lambda setting: points[setting.text], baseline=baseline)
            continue
        found = choose(rungs, budget, lambda setting: points[setting.text], baseline=baseline)
        assert found is not None
        peaks.append(found.peak_bytes)
        assert peaks[-1] <= budget
    assert len(peaks) >= 4
    assert all(a >= b for a, b in pairwise(peaks))


def test_a_budget_is_met_and_trains() -> None:
    """As an amount; one that is impossible names the smallest that works."""
    known, case = settings_of("gpt"), small_gpt()
    middle, baseline = known.pareto()[1], known.baseline_peak_bytes
    ours = {"lowering": "eager", "min_bytes": 0, "strict": True}
    compiled = fxapprox.compile(case.model, memory_budget=f"{middle.peak_bytes / 1024 + 0.01:.3f}KiB", **ours)
    loss, gradient = step(case, compiled)
    (report,) = fxapprox.reports(compiled)
    assert report.setting == middle.setting
    assert report.peak_bytes == middle.peak_bytes
    torch._dynamo.reset()
    exact = step(case, unrewritten(case.model))
    assert torch.equal(loss, exact[0])
    assert relative(gradient, exact[1]) < 0.05
    with pytest.raises(OptionError, match="smallest budget") as caught:
        joint("gpt").split(memory_budget="1KiB")
    smallest = float(re.search(r"is ([\d.]+) of plain", str(caught.value)).group(1))  # type: ignore[union-attr]
    least = report_of(joint("gpt").split(memory_budget=smallest), lowering="eager")
    assert least.peak_bytes <= smallest * baseline
    assert least.setting == known.pareto()[-1].setting


def test_a_lossless_budget() -> None:
    """No bit of a gradient moves; segments alone meet the budget."""
    torch.manual_seed(0)
    layers = [layer for _ in range(16) for layer in (nn.Linear(64, 64), nn.GELU())]
    call = traced(nn.Sequential(*layers), torch.randn(256, 64))
    exact = call.split(bits=None)
    points = call.split(bits=None, memory_budget=1.0).pareto()
    assert [p.error for p in points] == [0, 0]
    assert is_lower(points[1].peak_bytes, points[0].peak_bytes)
    found = call.split(bits=None, memory_budget=f"{points[1].peak_bytes}B")
    assert found.setting == "exact, checkpoints"
    assert found.segments
    assert call.step(found).same_as(call.step(exact))
