"""The page as text: whole, self-contained, and safe against what footage says of itself."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import itertools
import json
import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster import storage
from pipelines.commands import run
from pipelines.curation import inspect
from pipelines.recipe import Recipe
from pipelines.report import page, picks, runs
from pipelines.report.gather import gather
from pipelines.report.page import FILE, render, script_json, write_report
from tests.support.made_runs import make_records, write_failed_preview, write_run
from tests.support.made_tables import EVIL, make_curation, make_rows
from training.settings import TrainSettings

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text of each script."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def scripts(self) -> Iterator[tuple[dict[str, str | None], str]]:
        for (tag, attributes), text in zip(self.tags, self.texts, strict=True):
            if tag == "script":
                yield attributes, text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return gather(*make_curation(tmp_path_factory.mktemp("page"), make_rows(40)), WHEN)


@pytest.fixture(scope="module")
def elements(data: dict[str, Any]) -> Elements:
    found = Elements()
    found.feed(render(data))
    return found


def test_nothing_is_loaded_from_anywhere(elements: Elements) -> None:
    for tag, attributes in elements.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base", "form"), tag
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "data:")), (tag, attributes)
    for name in ("report.html", "report.css", *page.SCRIPTS):
        text = page._asset(name)
        assert not re.search(
            r"https?://|//cdn|@import|url\(|\bfetch\s*\(|XMLHttpRequest|WebSocket|\bimport\s*\(|sendBeacon", text
        ), name


def test_the_policy_allows_the_two_scripts_and_no_connection(data: dict[str, Any], elements: Elements) -> None:
    policy = next(
        a["content"] or ""
        for tag, a in elements.tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy
    assert "http" not in policy
    assert [attributes.get("id") for attributes, _ in elements.scripts()] == ["data", "charts", None]
    for script in re.findall(r"<script[^>]*>(.*?)</script>", render(data), re.DOTALL)[1:]:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_what_footage_says_cannot_become_markup(data: dict[str, Any], elements: Elements) -> None:
    assert any(EVIL in caption for caption in data["rows"]["table"]["caption"]), "the test would prove nothing"
    text = render(data)
    assert EVIL not in text
    assert "<img src=x" not in text
    assert html.escape(data["name"]) in text
    found = next(text for attributes, text in elements.scripts() if attributes.get("id") == "data")
    assert json.loads(found) == json.loads(json.dumps(data)), "the data comes through whole"
    for name in page.SCRIPTS:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", page._asset(name)
        ), name


def test_the_script_is_all_of_its_files() -> None:
    assert {path.name for path in files("pipelines.report").iterdir() if path.name.endswith(".js")} == set(page.SCRIPTS)
    assert page._asset(page.SCRIPTS[0]).startswith("'use strict';"), "which holds for what is joined to it"


@given(st.text())
def test_any_text_survives_in_a_script_element(text: str) -> None:
    written = script_json({"text": text.encode("utf-8", "replace").decode()})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {"text": text.encode("utf-8", "replace").decode()}


def test_the_page_is_limited_whatever_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks, "STRIP_BYTES", 100_000)
    rows = make_rows(700)
    recipe, curation = make_curation(tmp_path, rows)
    monkeypatch.setattr(picks, "chosen", functools.partial(picks.chosen, limit=500))
    found = gather(recipe, curation, WHEN)
    assert len(rows) > 3000
    assert len(found["rows"]["table"]["uid"]) == 500
    strips = [strip for strip in found["rows"]["strips"] if strip]
    assert 0 < len(strips) <= picks.MAX_STRIPS
    assert sum(len(base64.b64decode(text)) for strip in strips for text in strip) <= 100_000
    assert sum(cause["rows"] for cause in found["causes"]) == len(rows), "counts are of all"
    named = {(cause["fate"], cause["step"]) for cause in found["causes"] if cause["fate"] != "kept"}
    table = found["rows"]["table"]
    assert named <= set(zip(table["fate"], table["step"], strict=True)), "of every cause there is something to look at"


def test_a_report_is_written_beside_the_tables(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(20))
    written = write_report(recipe, curation, WHEN)
    assert written.uri == storage.join(recipe.out_uri, FILE)
    assert written.size_bytes == Path(written.uri).stat().st_size
    assert Path(written.uri).read_text(encoding="utf-8").startswith("<!doctype html>")
    again = write_report(recipe, curation, WHEN)
    assert Path(again.uri).read_bytes() == Path(written.uri).read_bytes(), "the same rows give the same page"


def test_runs_and_samples_are_found(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(20))
    records = [
        {"step": step, "loss": 1 / step, "tokens_per_s": 10.0} | ({"val_loss": 0.5} if step % 500 == 0 else {})
        for step in range(1, 1001)
    ]
    write_run(recipe.out_uri, "run-abc", records)
    storage.write_bytes(storage.join(recipe.out_uri, "samples", "a b.mp4"), b"")
    storage.write_bytes(storage.join(recipe.out_uri, "samples", "a b.json"), b'{"prompt": "a heron"}')
    found = gather(recipe, curation, WHEN)
    (run,) = found["training"]["runs"]
    assert (run["name"], run["steps"], run["tokens_per_s"], run["previews"]) == ("run-abc", 1000, 10.0, [])
    assert run["curves"]["val_loss"] == [[500, 1000], [0.5, 0.5]]
    assert found["samples"] == [{"file": "samples/a%20b.mp4", "kind": "video", "prompt": "a heron"}]


def test_runs_are_shown_by_their_settings(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))
    for number, lr in enumerate((0.001, 0.002)):
        settings = TrainSettings(lr=lr).model_dump(mode="json") | {"seed": number, "data": EVIL}
        write_run(recipe.out_uri, f"run-{number}", make_records(10 + number), settings=settings)
    write_run(recipe.out_uri, "run-older", make_records(5))
    data = gather(recipe, curation, WHEN)
    shown = {run["name"]: (run["label"], run["differs"]) for run in data["training"]["runs"]}
    assert shown == {
        "run-0": ("dit 6x192x6, pack, 10 steps", {"lr": "0.001", "seed": "0"}),
        "run-1": ("dit 6x192x6, pack, 11 steps", {"lr": "0.002", "seed": "1"}),
        "run-older": ("run-older", {}),
    }


def test_previews_are_links_with_posters_and_one_that_failed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))
    write_run(recipe.out_uri, "run-abc", make_records(30), (10, 20, 30), [EVIL, "a lake"])
    write_failed_preview(recipe.out_uri, "run-abc", 25, "ValueError: no weights")
    data = gather(recipe, curation, WHEN)
    previews = data["training"]["runs"][0]["previews"]
    assert [item["step"] for item in previews] == [10, 20, 25, 30]
    assert previews[2] == {"step": 25, "failed": "ValueError: no weights"}
    assert (previews[0]["video"], previews[0]["picture"]) == (
        "run-abc/previews/step-000010.mp4",
        "run-abc/previews/step-000010.png",
    )
    assert (tmp_path / "out" / previews[0]["video"]).exists()
    assert EVIL.startswith(previews[0]["captions"][0])
    assert EVIL not in render(data)
    with Image.open(io.BytesIO(base64.b64decode(previews[0]["poster"]))) as poster:
        assert (poster.format, poster.size) == ("JPEG", (160, 48))
    monkeypatch.setattr(runs, "POSTER_BYTES", 1)
    limited = gather(recipe, curation, WHEN)["training"]["runs"][0]["previews"]
    assert ["poster" in item for item in limited] == [True, False, False, False], "the others are links only"
    (tmp_path / "out" / "run-abc" / "previews" / "step-000010.png").unlink()
    assert gather(recipe, curation, WHEN)["training"]["runs"][0]["previews"][0]["poster"] == ""


def test_many_runs_and_previews_are_limited_to_the_newest_runs_and_to_previews_evenly_apart(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))
    for number in range(14):
        write_run(recipe.out_uri, f"run-{number:02d}", make_records(2))
        os.utime(tmp_path / "out" / f"run-{number:02d}" / "metrics.jsonl", (number, number))
    for step in range(1, 100):
        write_failed_preview(recipe.out_uri, "run-13", step, "late")
    found = gather(recipe, curation, WHEN)["training"]
    assert found["n_runs"] == 14
    assert [run["name"] for run in found["runs"]] == [f"run-{number:02d}" for number in range(13, 1, -1)]
    steps = [item["step"] for item in found["runs"][0]["previews"]]
    assert 12 < len(steps) <= runs.MAX_PREVIEWS
    assert steps[-1] == 99
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


def test_a_report_that_cannot_be_written_is_said_and_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))

    def fail(*arguments: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("pipelines.report.page.write_report", fail)
    assert run._report(recipe, curation) is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "report could not be written: OSError: the disk is full" in record.getMessage()
    caplog.clear()


def test_an_unfinished_run_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "out": str(tmp_path / "out"),
            "sources": [{"videos": str(tmp_path / "*.mp4")}],
            "curate": [{"scan": {}}],
        }
    )
    with pytest.raises(ValueError, match="scan has 0 of 1 rows; run the recipe"):
        write_report(recipe, inspect(recipe), WHEN)
