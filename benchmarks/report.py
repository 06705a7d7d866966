"""Measure a report: how long it takes to build, its size, and how fast a browser opens it and filters its rows.

    python -m benchmarks.report N [--folder DIR]

Makes the tables of N synthetic clips (`benchmarks.synthetic`) unless DIR holds them already. Writes the report twice,
since the first time reads the chart library. The browser is Chromium (WORLDLOOM_CHROMIUM or on the path) through
Playwright; without one its figures are null. `open_s` ends when the page's script has run and its first thumbnails
are visible. `filter_ms` is the median time from a keystroke in the search field until the rows have changed and are
laid out. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.synthetic import write_run
from pipelines.curation import inspect
from pipelines.recipe import load_recipe
from pipelines.report.page import write_report

OPENS = 3
TYPE = """text => {
  const field = document.querySelector('input[type=search]');
  const start = performance.now();
  field.value = text;
  field.dispatchEvent(new Event('input'));
  document.getElementById('rows').getBoundingClientRect();
  return performance.now() - start;
}"""


def browse(uri: str) -> dict[str, float | None]:
    """Return the times in a browser, which are None if there is no Chromium."""
    chromium = os.environ.get("WORLDLOOM_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        return {"open_s": None, "filter_ms": None, "scroll_s": None}
    from playwright.sync_api import sync_playwright  # an optional package

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opens: list[float] = []
        for _ in range(OPENS):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            start = time.monotonic()
            page.goto(Path(uri).as_uri())
            page.wait_for_selector(".thumbnails img.on")
            opens.append(time.monotonic() - start)
        page.wait_for_timeout(500)
        filters = [
            page.evaluate(TYPE, word[:n]) for word in ("street", "dedup near", "v0001") for n in range(1, len(word) + 1)
        ]
        page.evaluate(TYPE, "")
        start = time.monotonic()
        y_px = 0
        while y_px < page.evaluate("document.documentElement.scrollHeight"):
            page.evaluate(f"window.scrollTo({{top: {y_px}, behavior: 'instant'}})")
            page.wait_for_timeout(20)
            y_px += 800
        page.wait_for_function("() => [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg'))")
        scroll_s = time.monotonic() - start
        browser.close()
    return {
        "open_s": round(statistics.median(opens), 2),
        "filter_ms": round(statistics.median(filters), 1),
        "scroll_s": round(scroll_s, 2),
    }


def measure(folder: Path, n_clips: int) -> dict[str, Any]:
    """Write the tables, unless `folder` holds a recipe, and the report. Return all figures."""
    recipe_path = folder / "recipe.yaml"
    if not recipe_path.exists():
        write_run(folder, n_clips)
    recipe = load_recipe(recipe_path)
    start = time.monotonic()
    curation = inspect(recipe)
    inspect_s = time.monotonic() - start
    write_report(recipe, curation)
    written = write_report(recipe, curation)
    rows = len(curation.final.rows)
    built = {
        "rows": rows,
        "build_s": round(written.seconds, 2),
        "inspect_s": round(inspect_s, 2),
        "page_mb": round(written.size_bytes / 1e6, 2),
    }
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"clips": n_clips, **built, "peak_mb": round(peak_mb), **browse(written.uri)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=int)
    parser.add_argument(
        "--folder", type=Path, help="folder that the tables are written to or read from (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(arguments.folder or Path(temporary), arguments.clips)))


if __name__ == "__main__":
    main()
