"""The HTML report, as a headless Chromium shows it: one browser for all tests, one small model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.codecs import Cast, Exact, Group, Identity, Integer, Mask, Threshold
from fxapprox.ir.storage import Fate, Storage
from fxapprox.show.html.storage import GROUPS, storage_group
from tools.zoo import models

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
HOSTILE = "</script><b id=broken>&amp;"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    with playwright.sync_playwright() as driver:
        # root, as in containers, may not use Chromium's sandbox
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report() -> fxapprox.Report:
    torch._dynamo.reset()
    case = models.gpt(layers=4, batch=8)
    return fxapprox.explain(case.model, *case.args, bits=4, checkpoint=3)


class Broken(nn.Module):
    """A graph break between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        torch._dynamo.graph_break()
        return self.second(h).square().mean()


@dataclass
class Opened:
    """A page, and all that it should not do: messages on the console, errors, requests."""

    page: playwright.Page
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(browser: playwright.Browser, tmp_path: Path) -> Iterator[Callable[..., playwright.Page]]:
    opened: list[Opened] = []

    def run(text: str, *, width: int = 1400, **context: object) -> playwright.Page:
        file = tmp_path / f"page{len(opened)}.html"
        file.write_text(text, encoding="utf-8")
        page = browser.new_context(
            viewport={"width": width, "height": 900}, reduced_motion="reduce", **context
        ).new_page()
        page.set_default_timeout(4000)
        made = Opened(page)
        page.on("console", lambda message: made.complaints.append(message.text))
        page.on("pageerror", lambda error: made.complaints.append(str(error)))
        page.on("request", lambda request: made.complaints.append(request.url))
        page.goto(file.as_uri())
        made.complaints.remove(file.as_uri())
        opened.append(made)
        return page

    yield run
    for made in opened:
        assert [c for c in made.complaints if not c.startswith(("data:", "about:"))] == []
        made.page.context.close()


@pytest.fixture
def page(report: fxapprox.Report, open_page: Callable[..., playwright.Page]) -> playwright.Page:
    return open_page(report.to_html())


def cells(page: playwright.Page, column: int) -> list[str]:
    return page.locator(f"#decisions tbody td:not(.empty):nth-child({column})").all_inner_texts()


def natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def tip(page: playwright.Page) -> str:
    return page.locator("#tooltip:visible").inner_text()


@pytest.mark.parametrize("width", [1000, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window(
    report: fxapprox.Report, open_page: Callable[..., playwright.Page], width: int, scheme: str
) -> None:
    page = open_page(report.to_html(), width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in ("headline", "memory", "decisions", "modules", "graph"):
        assert page.locator(f"#{section}").is_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


def test_the_theme_can_be_switched(page: playwright.Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.get_by_role("button", name="switch to dark colours").press("Enter")
    assert page.evaluate(colour) != before
    page.get_by_role("button", name="switch to light colours").click()
    assert page.evaluate(colour) == before


def test_totals(page: playwright.Page, report: fxapprox.Report) -> None:
    text = page.locator("#headline").inner_text()
    assert "Predicted peak" in text
    assert "bits=4, checkpoint=3" in text
    assert f"{report.baseline_bytes / report.saved_bytes:.1f}× less" in text
    assert "backward computes 2 segments again" in text


def test_rows_are_sorted_by_click_and_by_key(page: playwright.Page, report: fxapprox.Report) -> None:
    heads = page.locator("#decisions th")
    before, value = heads.nth(5), heads.nth(0)
    assert before.get_attribute("aria-sort") == "descending"
    assert cells(page, 1)[0] == report.decisions[0].value
    before.get_by_role("button").click()
    assert before.get_attribute("aria-sort") == "ascending"
    assert cells(page, 6)[0] in ("0 B", "\u2013")
    value.get_by_role("button").press("Enter")
    assert (value.get_attribute("aria-sort"), before.get_attribute("aria-sort")) == ("ascending", "none")
    assert cells(page, 1)[0] == min((d.value for d in report.decisions), key=natural)


def test_rows_are_filtered(page: playwright.Page, report: fxapprox.Report) -> None:
    page.get_by_role("searchbox", name="Filter decisions").fill("blocks.3.QKV")
    assert set(cells(page, 2)) == {"blocks.3.qkv"}
    page.get_by_role("searchbox", name="Filter decisions").fill("")
    page.locator("select[name=group]").select_option("bits8")
    assert len(cells(page, 5)) == sum(storage_group(d.how) == "bits8" for d in report.decisions)
    page.locator("select[name=class]").select_option("statistic")
    assert page.locator("#decisions").get_by_text("no value matches").is_visible()
    assert page.locator("#decisions .more").is_hidden()
    assert f"0 of {len(report.decisions)} values" in page.locator("#decisions .count").inner_text()


def test_pointing_at_a_chart_names_values(page: playwright.Page, report: fxapprox.Report) -> None:
    charts = page.locator("#memory .chart svg")
    page.locator("#memory").scroll_into_view_if_needed()
    for chart in (charts.nth(0), charts.nth(1)):
        chart.hover(position={"x": 300, "y": 150})
        assert re.search(r"(forward|backward), kernel \d+ of \d+", tip(page))
        assert "largest alive" in tip(page)
    chart = charts.nth(1)
    chart.focus()
    chart.press("p")
    moment = report.timeline.peak_moment({})
    assert moment.name in tip(page)
    at = report.timeline.moments.index(moment)
    alive = [x for x in report.timeline.lives if x.start <= at and (x.until is None or at < x.until)]
    assert max(alive, key=lambda life: life.size).text in tip(page)
    chart.press("Home")
    assert chart.get_attribute("aria-valuenow") == "1"
    chart.press("ArrowRight")
    assert chart.get_attribute("aria-valuenow") == "2"
    assert page.locator("#memory .mark-boundary").count() > 1  # in the legend and in the chart


def test_modules_open_and_close_by_key(page: playwright.Page) -> None:
    opener = page.get_by_role("button", name=re.compile("(open|close) blocks", re.IGNORECASE))
    shown = page.locator("#modules tbody tr").count()
    opener.press("ArrowLeft")
    assert page.locator("#modules tbody tr").count() < shown
    assert opener.get_attribute("aria-expanded") == "false"
    opener.press("Enter")
    assert page.locator("#modules tbody tr").count() == shown


def test_the_graph_opens_on_demand(page: playwright.Page, report: fxapprox.Report) -> None:
    boxes = page.locator("#graph .box")
    folded = boxes.count()
    assert folded < 100
    page.locator("#graph").scroll_into_view_if_needed()
    page.locator("#graph .box.module", has_text=re.compile("operators")).first.click()
    assert boxes.count() > folded
    page.get_by_role("searchbox", name="Find").fill("scaled_dot_product")
    page.get_by_role("searchbox", name="Find").press("Enter")
    page.locator("#graph .box.near", has_text="scaled_dot_product").first.hover()
    assert "aten._scaled_dot_product_flash_attention_for_cpu" in tip(page)
    page.get_by_role("button", name="close all modules").click()
    page.locator("#graph canvas, #graph svg[role=application]").press("Enter")
    page.keyboard.press("ArrowDown")
    assert tip(page)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "application"


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_codecs_are_single_boxes(page: playwright.Page, report: fxapprox.Report, stage: str) -> None:
    page.locator("select[name=stage]").select_option(label=f"{stage} as it runs")
    page.locator("#graph").scroll_into_view_if_needed()
    kind = "quantize" if stage == "forward" else "dequantize"
    page.get_by_role("searchbox", name="Find").fill(f"{kind}(")
    page.get_by_role("searchbox", name="Find").press("Enter")
    box = page.locator("#graph .box.codec.near").first
    box.hover()
    assert re.search(rf"{kind}\(\w+\) {kind} · \d-bit", tip(page))
    assert re.search(r"float32\[[\d, ]+\] · [\d.]+ \w?i?B", tip(page))
    assert any(d.reason in tip(page) for d in report.decisions)


def test_zoom_and_pan(page: playwright.Page) -> None:
    place = "document.querySelector('#graph svg[role=application] > g').getAttribute('transform')"
    canvas = page.locator("#graph svg[role=application]")
    seen = [page.evaluate(place)]
    for press in ("+", "ArrowDown", "0"):
        canvas.press(press)
        seen.append(page.evaluate(place))
    assert all(before != after for before, after in pairwise(seen))


def test_several_graphs(open_page: Callable[..., playwright.Page]) -> None:
    report = fxapprox.explain(Broken(), torch.randn(64, 64), bits=4)
    page = open_page(report.to_html())
    choice = page.locator("select[name=view]")
    assert choice.locator("option").all_inner_texts() == ["all graphs", "graph 1 of 2", "graph 2 of 2"]
    everything = len(cells(page, 1))
    assert page.locator("#graph .box").count()
    choice.select_option("1")
    first = len(cells(page, 1))
    choice.select_option("2")
    assert (everything, first + len(cells(page, 1))) == (len(report.decisions), len(report.decisions))


def hostile(report: fxapprox.Report) -> fxapprox.Report:
    decision = replace(report.decisions[0], value=HOSTILE, reason=HOSTILE, source=HOSTILE, module=HOSTILE)
    return replace(report, decisions=(decision, *report.decisions[1:]))


def test_names_are_never_markup(report: fxapprox.Report, open_page: Callable[..., playwright.Page]) -> None:
    page = open_page(hostile(report).to_html())
    assert cells(page, 1)[0] == HOSTILE
    assert page.locator("#broken").count() == 0
    assert page.locator("#modules", has_text="<b id=broken>").count()
    plain = open_page(hostile(report).to_html(), java_script_enabled=False)
    assert plain.locator("td", has_text=HOSTILE).count()
    assert plain.locator("#broken").count() == 0


def test_without_scripts_the_table_is_left(report: fxapprox.Report, open_page: Callable[..., playwright.Page]) -> None:
    page = open_page(report.to_html(), java_script_enabled=False)
    assert "Stored for backward" in page.locator("noscript").inner_text()
    assert page.locator("noscript tbody tr").count() == 20


def test_two_reports_in_a_notebook(report: fxapprox.Report, open_page: Callable[..., playwright.Page]) -> None:
    other = hostile(report)
    page = open_page(f"<!doctype html><body>{report._repr_html_()}<hr>{other._repr_html_()}</body>")
    frames = [frame for frame in page.frames if frame != page.main_frame]
    firsts = [frame.locator("#decisions tbody td").first.inner_text() for frame in frames]
    assert firsts == [report.decisions[0].value, HOSTILE]
    frames[0].locator("#theme").click()
    assert [frame.evaluate("document.documentElement.dataset.theme") for frame in frames] == ["dark", None]
    assert page.locator("[id]").count() == 0  # of its own, outside of the frames
    assert page.get_by_text("for backward").first.is_visible()


def test_empty_reports(open_page: Callable[..., playwright.Page]) -> None:
    tiny = fxapprox.explain(nn.Linear(4, 4), torch.randn(2, 4))
    page = open_page(tiny.to_html())
    assert "nothing is stored for backward" in page.locator("#decisions").inner_text()
    assert "nothing is stored for backward" in page.locator("#modules").inner_text()
    assert "Nothing is stored" in tiny._repr_html_()


def test_a_graph_left_alone(open_page: Callable[..., playwright.Page]) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    report = fxapprox.explain(lambda x: net(x).square().mean(), torch.randn(64, 64), bits=None)
    page = open_page(replace(report, fallback="mutates <its> input", decisions=()).to_html())
    assert "Stored exactly, as plain torch.compile does. mutates <its> input" in page.locator("#headline").inner_text()
    for section in ("decisions", "modules"):
        assert "the graph was left alone" in page.locator(f"#{section}").inner_text()
    assert page.locator("#graph .box").count()
    assert "Nothing is stored" not in report._repr_html_()


def test_dynamic_sizes(open_page: Callable[..., playwright.Page]) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    report = fxapprox.explain(model, torch.randn(128, 64), bits=4, dynamic=True).at(256)
    page = open_page(report.to_html())
    assert "here 256; this graph serves" in page.locator("#headline").inner_text()
    assert "256" in cells(page, 3)[0]


def test_the_page_refers_to_nothing(report: fxapprox.Report) -> None:
    text = report.to_html()
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\((?!#)""", text)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_the_data_is_json(report: fxapprox.Report) -> None:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', report.to_html(), re.DOTALL)
    view = json.loads(found)["views"][0]
    assert view["stored"] == [report.baseline_bytes, report.saved_bytes]
    assert view["peak"] == [report.baseline_peak_bytes, report.peak_bytes]
    assert sum(after for *_, after in view["totals"]) == report.saved_bytes


def test_files_that_cannot_be_written(report: fxapprox.Report, tmp_path: Path) -> None:
    with pytest.raises(fxapprox.FxApproxError, match="cannot be written"):
        report.to_html(tmp_path)


@pytest.mark.parametrize(
    ("how", "group"),
    [(Storage.stored(Threshold(4)), "bits4"), (Storage.stored(Exact()), "exact"), (Storage.stored(Mask()), "lossless"),
     (Storage.stored(Identity()), "lossless"), (Storage.stored(Integer(0, 200)), "lossless"),
     (Storage.stored(Cast()), "lossy"), (Storage.stored(Cast(torch.float8_e5m2)), "bits8"),
     (Storage.stored(Group(4), segment=2), "recomputed"), (Storage.carried("conv"), "inside"),
     (Storage.recomputed(), "recomputed"), (Storage(Fate.UNNEEDED), "dropped"), (Storage(Fate.FREE), "free"),
     (Storage(Fate.STORED, Group(8), role="boundary"), "boundary"), (None, "none")],
)  # fmt: skip
def test_groups_of_storage(how: Storage | None, group: str) -> None:
    assert storage_group(how) == group
    assert group in GROUPS


def test_a_lossy_cast_is_not_called_lossless() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    report = fxapprox.explain(
        lambda x: net(x).square().mean(), torch.randn(64, 64),
        policy=lambda value: Cast(torch.bfloat16) if value.is_float and value.approximable else None,
    )  # fmt: skip
    cast = [d for d in report.decisions if d.storage == "16-bit cast"]
    assert cast
    assert {storage_group(d.how) for d in cast} == {"lossy"}
    assert all(d.bits == 16 for d in cast)
