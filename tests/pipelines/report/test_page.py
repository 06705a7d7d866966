"""The page as text: complete, self-contained, and safe whatever texts the footage has."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import storage
from pipelines.curation import inspect
from pipelines.recipe import Recipe
from pipelines.report import page
from pipelines.report.page import FILE, render, script_json, write_report
from pipelines.report.page_data import page_data
from tests.support.report_runs import make_records, write_run
from tests.support.report_tables import HOSTILE_TEXT, WHEN, make_curation, make_rows


class Elements(HTMLParser):
    """A parser that collects the elements of a page with their attributes, and the text of each script."""

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

    def scripts(self) -> Iterator[tuple[str | None, str]]:
        """Yield the id and the text of each script."""
        for (tag, attributes), text in zip(self.tags, self.texts, strict=True):
            if tag == "script":
                yield attributes.get("id"), text


@pytest.fixture(scope="module")
def elements(data: dict[str, Any]) -> Elements:
    """Return the elements of the page."""
    found = Elements()
    found.feed(render(data))
    return found


@pytest.mark.slow
def test_the_page_loads_nothing(elements: Elements) -> None:
    for tag, attributes in elements.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base", "form"), tag
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "data:")), (tag, attributes)
    loads = r"https?://|//cdn|@import|url\(|\bfetch\s*\(|XMLHttpRequest|WebSocket|\bimport\s*\(|sendBeacon"
    for name in ("report.html", "report.css", *page.SCRIPTS):
        assert not re.search(loads, page._asset(name)), name


@pytest.mark.slow
def test_the_policy_allows_two_scripts_and_no_connection(data: dict[str, Any], elements: Elements) -> None:
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in elements.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy
    assert "http" not in policy
    assert [name for name, _ in elements.scripts()] == ["data", "chart-library", None]
    for script in re.findall(r"<script[^>]*>(.*?)</script>", render(data), re.DOTALL)[1:]:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_texts_of_footage_cannot_become_markup(data: dict[str, Any], elements: Elements) -> None:
    assert any(HOSTILE_TEXT in caption for caption in data["rows"]["table"]["caption"]), "the test would prove nothing"
    text = render(data)
    assert HOSTILE_TEXT not in text
    assert "<img src=x" not in text
    assert html.escape(data["name"]) in text
    embedded = dict(elements.scripts())["data"]
    assert json.loads(embedded) == json.loads(json.dumps(data)), "the data is complete"
    sets_markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    for name in page.SCRIPTS:
        assert not re.search(sets_markup, page._asset(name)), name


@pytest.mark.slow
def test_texts_of_runs_cannot_become_markup(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))
    settings = {"model": {"name": HOSTILE_TEXT}}
    write_run(recipe.out_uri, "run", make_records(30), settings, previews={10: [HOSTILE_TEXT]})
    found = page_data(recipe, curation, WHEN)
    assert HOSTILE_TEXT in found["training"]["runs"][0]["label"], "the test would prove nothing"
    assert HOSTILE_TEXT.startswith(found["training"]["runs"][0]["previews"][0]["captions"][0])
    assert HOSTILE_TEXT not in render(found)


def test_the_script_has_all_files_of_the_folder() -> None:
    assert {path.name for path in files("pipelines.report").iterdir() if path.name.endswith(".js")} == set(page.SCRIPTS)
    assert page._asset(page.SCRIPTS[0]).startswith("'use strict';"), "it holds for the whole joined script"


@pytest.mark.slow
@given(st.text())
def test_any_text_survives_in_a_script_element(text: str) -> None:
    encodable = text.encode("utf-8", "replace").decode()
    written = script_json({"text": encodable})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {"text": encodable}


@pytest.mark.slow
def test_a_report_is_written_beside_the_tables(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(20))
    written = write_report(recipe, curation, WHEN)
    assert written.uri == storage.join(recipe.out_uri, FILE)
    assert written.size_bytes == Path(written.uri).stat().st_size
    first = Path(written.uri).read_bytes()
    assert first.startswith(b"<!doctype html>")
    write_report(recipe, curation, WHEN)
    assert Path(written.uri).read_bytes() == first, "the same rows give the same page"


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "out": str(tmp_path / "out"),
            "sources": [{"videos": str(tmp_path / "*.mp4")}],
            "curate": [{"scan": {}}],
        }
    )
    with pytest.raises(ValueError, match="scan has 0 of 1 rows; run `worldloom curate` first"):
        write_report(recipe, inspect(recipe), WHEN)
