"""The page in Chromium: charts are drawn, filters work, nothing is loaded, and it fits wide and narrow screens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster import storage
from pipelines.report.page import write_report
from tests.support.report_runs import make_records, write_audit, write_evaluation, write_failed_preview, write_run
from tests.support.report_tables import HOSTILE_TEXT, WHEN, jpeg, make_curation, make_rows

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")

BROWSER = os.environ.get("WORLDLOOM_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium; set WORLDLOOM_CHROMIUM")]

ROWS = make_rows(60)
TOO_WIDE = """[...document.querySelectorAll('main *')].filter(
  (node) => !node.closest('.scroll, pre, .plot, .bar') && node.getBoundingClientRect().right > innerWidth + 1).length"""
UNNAMED = """[...document.querySelectorAll('button, select, input, .plot, a')].filter(
  (node) => !node.hidden && !(node.textContent.trim() || node.ariaLabel || node.labels?.length)).length"""
SECTIONS = ("measures", "balance", "time", "training", "evaluation", "memorisation")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a report with splits, two runs, previews and a sample, and return its URL."""
    recipe, curation = make_curation(tmp_path_factory.mktemp("browser"), ROWS)
    uids = [row["uid"] for row in ROWS if row["fate"] == "kept"]
    splits = {"uid": uids, "split": ["val" if i % 5 == 0 else "train" for i in range(len(uids))]}
    storage.write_table(storage.join(recipe.out_uri, "splits.parquet"), pa.table(splits))
    write_run(recipe.out_uri, "run-2", make_records(80, seed=1))
    settings = {"model": {"name": "dit", "preset": HOSTILE_TEXT}}
    previews = dict.fromkeys((40, 80, 120), (HOSTILE_TEXT, "a lake"))
    write_run(recipe.out_uri, "run-1", make_records(120), settings, previews)
    write_failed_preview(recipe.out_uri, "run-1", 100, "ValueError: no weights")
    for number in (1, 2):
        os.utime(storage.join(recipe.out_uri, f"run-{number}", "metrics.jsonl"), (9 - number, 9 - number))
    storage.write_bytes(storage.join(recipe.out_uri, "samples", "a b.png"), jpeg(7))
    write_evaluation(recipe.out_uri, "weights-1", uids, HOSTILE_TEXT)
    write_audit(recipe.out_uri, "weights-1", uids, HOSTILE_TEXT)
    return Path(write_report(recipe, curation, WHEN).uri).as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Start Chromium, and close it at the end."""
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1400, "light"), (390, "dark")], ids=["wide", "narrow"])
def page(chromium: Any, report: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Open the page. At the end there must have been no error, no console message and no foreign request."""
    width, scheme = request.param
    opened = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(f"error: {error}"))
    opened.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    opened.on(
        "request",
        lambda sent: None if sent.url.startswith(("file:", "data:")) else faults.append(f"request: {sent.url}"),
    )
    opened.goto(report)
    yield opened
    assert opened.evaluate("window.injected") is None, "a text of the footage ran as script"
    opened.close()
    assert not faults


def scroll(page: Any) -> None:
    """Scroll down the whole page, to the next chart as soon as one is drawn."""
    page.wait_for_function(
        """() => {
            const missing = [...document.querySelectorAll('.plot')].find(plot => !plot.querySelector('svg'))
            missing?.scrollIntoView({behavior: 'instant', block: 'center'})
            return !missing
        }""",
        polling=20,
        timeout=120_000,
    )


def shown(page: Any) -> list[int]:
    """Return the row numbers of the table of clips."""
    return [int(row) for row in page.eval_on_selector_all("#rows tbody tr", "rows => rows.map(row => row.dataset.row)")]


def column(page: Any, name: str) -> list[Any]:
    """Return a column of the rows of the page."""
    values: list[Any] = page.evaluate(f"table[{name!r}]")
    return values


def test_charts_are_drawn_in_view_and_the_page_fits(page: Any) -> None:
    assert page.evaluate("document.querySelectorAll('#balance .plot svg').length") == 0, "not before they are needed"
    scroll(page)
    for name in SECTIONS:
        assert page.locator(f"#{name} .plot svg").count() > 0, name
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no horizontal scrolling"
    assert page.evaluate(TOO_WIDE) == 0
    assert page.evaluate(UNNAMED) == 0, "every control has a name"


def test_a_threshold_has_its_yields_under_its_histogram(page: Any) -> None:
    plot = page.locator("#measures .plot.tall >> nth=0")
    plot.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('#measures .plot.tall svg .scatterlayer .trace')")
    thresholds = page.evaluate("data.thresholds.filter(threshold => threshold.column === 'luma')")
    assert [threshold["side"] for threshold in thresholds] == ["min", "max"]
    assert plot.locator(".scatterlayer .trace").count() == 2
    assert plot.locator(".scatterlayer .point").count() == sum(len(threshold["yields"]) for threshold in thresholds)
    label = plot.get_attribute("aria-label")
    for limit, n_clips, _ in thresholds[0]["yields"]:
        assert f"{n_clips} clips at {float(f'{limit:.3g}'):g}" in label or n_clips == 1
    assert page.locator("#measures .card:has(h3:text-is('camera')) .scatterlayer .trace").count() == 0, (
        "names have no curve"
    )


def test_filters_and_search_change_the_rows(page: Any) -> None:
    fates, captions = column(page, "fate"), column(page, "caption")
    assert len(shown(page)) == 25
    page.click(".chip[data-fate='dropped']")
    assert {fates[i] for i in shown(page)} == {"dropped"}
    n_dropped = sum(row["fate"] == "dropped" for row in ROWS)
    assert f"{n_dropped} in all" in page.inner_text("#shown")
    page.select_option("select >> nth=0", "keep#2")
    assert {column(page, "step")[i] for i in shown(page)} == {"keep#2"}
    page.click(".chip[data-fate='']")
    page.fill("input[type=search]", "GREY heron")
    assert shown(page)
    assert all("heron" in captions[i] for i in shown(page))
    page.fill("input[type=search]", "no such words")
    assert shown(page) == []
    assert "No row matches" in page.inner_text("#shown")


def test_pages_follow_each_other_and_sorting_sorts(page: Any) -> None:
    first = shown(page)
    page.click("text=Next")
    second = shown(page)
    assert len(second) == 25
    assert not set(first) & set(second)
    page.click("text=Previous")
    assert shown(page) == first
    page.select_option("label:has-text('Sort by') select", "motion")
    values = [column(page, "motion")[i] for i in shown(page)]
    assert values == sorted(values, reverse=True)


def test_a_reason_of_the_funnel_leads_to_its_clips(page: Any) -> None:
    page.click("#funnel button:has-text('motion under 0.02')")
    assert {column(page, "reason")[i] for i in shown(page)} == {"motion under 0.02"}


def test_duplicates_and_failures_are_there(page: Any) -> None:
    groups = page.evaluate("data.duplicates.groups.length")
    assert groups
    assert page.locator("#duplicates .pairs").count() == min(6, groups)
    assert page.locator("#duplicates .pairs >> nth=0 >> .copies .thumbnails").count() >= 1
    assert "distance" in page.inner_text("#duplicates")
    assert {"DecodeError", "OSError"} <= set(page.inner_text("#failures").replace("\n", " ").split())


def test_thumbnails_play_and_a_clip_opens_and_closes(page: Any) -> None:
    page.wait_for_selector(".hero .thumbnails img.on")
    before = page.get_attribute(".hero .thumbnails img.on", "src")
    page.wait_for_function("before => document.querySelector('.hero .thumbnails img.on').src !== before", arg=before)
    page.click("#motion")
    assert page.get_attribute("#motion", "aria-pressed") == "true"
    page.click(".hero .thumbnails >> nth=0")
    assert page.locator("dialog[open] .film img").count() == 3
    assert "luma" in page.inner_text("dialog")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_samples_beside_the_page_are_shown(page: Any) -> None:
    page.locator("#training img.media").scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('#training img.media').naturalWidth === 64")


def test_runs_are_compared_and_one_can_be_hidden(page: Any) -> None:
    page.locator("#training .plot.tall").scroll_into_view_if_needed()
    lines = "document.querySelectorAll('#training .plot.tall .scatterlayer .trace').length"
    page.wait_for_function(f"() => {lines} === 6")  # for each run: steps, means, validation
    page.click("#training .chip:has-text('run-2')")
    page.wait_for_function(f"() => {lines} === 3")
    assert page.get_attribute("#training .chip:has-text('run-2')", "aria-pressed") == "false"


def test_a_run_without_settings_has_the_name_of_its_folder(page: Any) -> None:
    table = page.inner_text("#training table")
    assert f"dit {HOSTILE_TEXT}, 120 steps" in table
    assert "run-1" in table
    assert table.count("run-2") == 1


def test_parts_of_the_loss_follow_the_choice_of_run_and_split(page: Any) -> None:
    card = page.locator("#training .card:has(h3:text-is('Loss by noise level'))")
    card.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelectorAll('#training .card .legend').length")
    assert card.locator(".legend li").count() == 10
    before = card.locator(".plot").get_attribute("aria-label")
    page.select_option("#training label:has-text('Run') select", label="run-2")
    other = card.locator(".plot").get_attribute("aria-label")
    page.select_option("#training label:has-text('Parts of') select", label="the validation loss")
    assert len({before, other, card.locator(".plot").get_attribute("aria-label")}) == 3
    assert page.locator("#training .preview").count() == 0, "run-2 has none"


def test_the_slider_shows_previews_and_a_video_plays(page: Any) -> None:
    preview = page.locator("#training .preview")
    preview.scroll_into_view_if_needed()
    assert page.inner_text("#training .slide output") == "step 120"
    assert page.locator("#training .captions li").count() == 2
    last = preview.locator("img").get_attribute("src")
    assert last is not None
    assert last.startswith("data:image/jpeg")
    slider = page.locator("#training input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert "No preview: ValueError: no weights" in preview.inner_text()
    page.keyboard.press("Home")
    assert page.inner_text("#training .slide output") == "step 40"
    assert preview.locator("img").get_attribute("src") != last
    page.click("#training .slide button")
    page.wait_for_function("() => document.querySelector('#training video').currentTime > 0")
    page.click("#training .slide button")
    assert preview.locator("video").count() == 0


def test_evaluations_show_scores_and_the_nearest_training_clips(page: Any) -> None:
    table = page.inner_text("#evaluation table")
    assert "0.92 [0.865, 0.975]" in table
    assert "colour constancy" in table
    page.locator("#evaluation .plot.tall").scroll_into_view_if_needed()
    page.wait_for_function(
        "() => document.querySelectorAll('#evaluation .plot.tall .scatterlayer .trace').length === 2"
    )
    pairs = page.locator("#evaluation .nearest-pair")
    assert pairs.count() == 6
    assert HOSTILE_TEXT in pairs.nth(0).inner_text()
    page.wait_for_function("() => document.querySelector('#evaluation video').videoWidth === 96")


def test_an_audit_shows_flagged_captions_and_moving_pairs(page: Any) -> None:
    assert "2 of 24 clips learnt by heart" in page.inner_text("#memorisation")
    assert HOSTILE_TEXT in page.inner_text("#memorisation table")
    page.locator("#memorisation .plot.tall").first.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => document.querySelectorAll('#memorisation .plot.tall .scatterlayer .trace').length >= 2"
    )
    pair = page.locator("#memorisation .nearest-pair").first
    pair.scroll_into_view_if_needed()
    moving = "() => [...document.querySelectorAll('#memorisation .nearest-pair')][0].querySelectorAll('video')"
    page.wait_for_function(f"() => [...({moving})()].filter((video) => !video.paused).length === 2")
    page.click("#motion")
    page.wait_for_function(f"() => [...({moving})()].filter((video) => !video.paused).length === 0")


def test_thumbnails_are_still_with_reduced_motion(chromium: Any, report: str) -> None:
    opened = chromium.new_page(reduced_motion="reduce")
    opened.goto(report)
    opened.wait_for_selector(".hero .thumbnails img.on")
    before = opened.get_attribute(".hero .thumbnails img.on", "src")
    opened.wait_for_timeout(1700)
    assert opened.get_attribute(".hero .thumbnails img.on", "src") == before
    assert opened.inner_text("#motion") == "Play thumbnails"
    opened.close()
